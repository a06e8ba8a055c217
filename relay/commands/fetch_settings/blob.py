"""Reads the blob that has the settings, by its ETag: an unchanged one is not sent again.

Source: learn.microsoft.com, "Get Blob" and "Authorize with Microsoft Entra ID" (bearer token, x-ms-version, x-ms-date).
"""

from __future__ import annotations

import urllib.parse
from email.utils import formatdate
from typing import NamedTuple

from relay.commands.fetch_settings.http import FetchFailed, get
from relay.settings.file_reader import MAX_FILE

VERSION = "2021-12-02"  # of the storage service; tokens need 2017-11-09 or newer
SECONDS = 20.0  # for an answer of MAX_FILE bytes


class Blob(NamedTuple):
    """The blob's content; None if it has the ETag that was known."""

    content: bytes | None
    etag: str


def read(url: str, token: str, etag: str) -> Blob:
    """Read the blob with a token, unless its ETag is still `etag` (empty: read it). Raises FetchFailed."""
    name = short_name(url)
    headers = {"Authorization": f"Bearer {token}", "x-ms-version": VERSION, "x-ms-date": formatdate(usegmt=True)}
    if etag:
        headers["If-None-Match"] = etag
    answer = get(name, url, headers, seconds=SECONDS, most=MAX_FILE)
    if answer.status == 200:
        return Blob(answer.body, answer.etag if _sendable(answer.etag) else "")
    if answer.status == 304 and etag:
        return Blob(None, etag)
    if answer.status == 404:
        raise FetchFailed(f"{name}: not there (HTTP status 404); settings_source.blob names it")
    if answer.status in (401, 403):
        raise FetchFailed(
            f"{name}: refused (HTTP status {answer.status}); give the managed identity the role Storage Blob Data "
            "Reader, and let the account's firewall admit this network"
        )
    raise FetchFailed(f"{name}: {answer.shown}", again=answer.status in (408, 429) or answer.status >= 500)


def short_name(url: str) -> str:
    """The blob for messages: account, container and name."""
    parts = urllib.parse.urlsplit(url)
    return f"blob {(parts.hostname or '').partition('.')[0]}{parts.path}"


def _sendable(etag: str) -> bool:
    """Whether an ETag can be sent back as a header."""
    return len(etag) <= 256 and etag.isascii() and etag.isprintable()
