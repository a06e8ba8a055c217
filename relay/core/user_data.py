"""User data of a virtual machine as a settings document: what it is, its table `[settings_source]`, and the rest.

The metadata service answers with base64 text. The decoded document is TOML: either the settings themselves, or the
table `[settings_source]` alone, which names the blob that has them. That table also says which part of a fleet takes
new settings (`core.rollout`). The settings themselves are checked by `settings.model`.

Source: learn.microsoft.com, "User Data for Azure Virtual Machine" (64 KiB, base64).
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
import urllib.parse
from dataclasses import dataclass
from typing import Any

LARGEST = 65_536  # bytes of a decoded document
LARGEST_ANSWER = 2 * LARGEST  # bytes of base64 text with line breaks
TABLE = "settings_source"

# What else is found in user data, by how it begins: cloud-init's formats (its documentation, "User data formats").
_OTHERS = (
    (b"#cloud-config", "a #cloud-config document, which is cloud-init's"),
    (b"## template:", "a template, which is cloud-init's"),
    (b"#cloud-boothook", "a boothook, which is cloud-init's"),
    (b"#include", "an include file, which is cloud-init's"),
    (b"#part-handler", "a part handler, which is cloud-init's"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"content-type:", "a MIME document, which is cloud-init's"),
    (b"mime-version:", "a MIME document, which is cloud-init's"),
)
_HEADER = re.compile(rb"\s*\[")
_OWN_HEADER = re.compile(rb"\s*\[\s*(?:settings_source|\"settings_source\"|'settings_source')\s*\]\s*(?:#.*)?")
# The suffixes of the public and the sovereign clouds. The token goes to that host, so no other will do.
_BLOB_HOST = re.compile(
    r"[a-z0-9-]{3,63}(\.z[0-9]{1,2})?"
    r"\.blob\.(core\.windows\.net|core\.usgovcloudapi\.net|core\.chinacloudapi\.cn|storage\.azure\.net)"
)
_CLIENT_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TAG = re.compile(r"[^:]{1,512}:.{0,256}")


class Malformed(ValueError):
    """User data that is no settings document. The text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Source:
    """The table `[settings_source]`; the defaults stand for user data without one."""

    blob: str = ""  # https URL of the blob that has the settings; empty: the user data has them itself
    client_id: str = ""  # of a user-assigned managed identity; empty: the machine's only one
    percentage: float | None = None  # part of the fleet that takes new settings; None: not given
    salt: str = ""  # which machines that part is; empty: others with each change
    canary_tag: str = ""  # name:value; machines with this tag take new settings in any case


@dataclass(frozen=True, slots=True)
class Document:
    """A decoded document: the table `[settings_source]`, and the settings as TOML without it.

    `settings` has an empty line for each line of the table, so that the line numbers of mistakes are the document's.
    """

    source: Source
    settings: bytes


def decode(answer: bytes) -> bytes:
    """The document in the metadata service's base64 answer. Raises Malformed."""
    text = b"".join(answer.split())
    if not text:
        raise Malformed("user data: empty; set it to a settings document, or disable relay-settings.timer")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(
            "user data: the metadata service's answer is not base64; set the user data again, encoded once"
        ) from None
    if len(data) > LARGEST:
        raise Malformed(too_long(len(data)))
    if not data.strip():
        raise Malformed("user data: nothing but white space; set it to a settings document")
    return data


def too_long(length: int) -> str:
    """The mistake of user data that has `length` bytes, or more."""
    return (
        f"user data: {length} bytes or more, and {LARGEST} are the most; put the settings into a blob and name it: "
        f'[{TABLE}] blob = "https://…"'
    )


def split(data: bytes) -> Document:
    """Take `[settings_source]` out of a document. Raises Malformed."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    for beginning, kind in _OTHERS:
        if start.startswith(beginning):
            raise Malformed(
                f"user data: {kind}, and not TOML; give cloud-init its document as custom data, and relay its "
                "settings as user data"
            )
    tables = _parse(data)
    if not _sets_anything(tables):
        raise Malformed("user data: sets nothing, all of it is commented out; to take back a setting, write its value")
    if TABLE not in tables:
        return Document(Source(), data)
    table = tables.pop(TABLE)
    if not isinstance(table, dict):
        raise Malformed(f"{TABLE}: not a table; write [{TABLE}]")
    source = _source(table)
    if source.blob and tables:
        raise Malformed(f"{next(iter(tables))}: beside {TABLE}.blob, which has all the settings; move it into the blob")
    if not source.blob and not _sets_anything(tables):
        raise Malformed(f"user data: only [{TABLE}], and no settings; write them, or name a blob that has them")
    settings = _without_table(data)
    try:
        same = _parse(settings) == tables
    except Malformed:  # a line of a string that looks like the header
        same = False
    if not same:
        raise Malformed(f"{TABLE}: write it under one header, [{TABLE}], with a line for each value")
    return Document(source, settings)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError:
        raise Malformed("user data: not UTF-8, and so not TOML") from None
    except RecursionError:
        raise Malformed("user data: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or int() with too many digits
        raise Malformed(f"user data: not TOML: {' '.join(str(error).split())[:200]}") from None


def _sets_anything(table: dict[str, Any]) -> bool:
    return any(_sets_anything(value) if isinstance(value, dict) else True for value in table.values())


def _without_table(data: bytes) -> bytes:
    """The document with the lines of the table emptied. The caller compares what is left."""
    lines, inside = [], False
    for line in data.splitlines(keepends=True):
        if _HEADER.match(line):
            inside = _OWN_HEADER.fullmatch(line.rstrip(b"\r\n")) is not None
        lines.append(line[len(line.rstrip(b"\r\n")) :] if inside else line)
    return b"".join(lines)


def _source(table: dict[str, Any]) -> Source:
    texts = {"blob": "", "client_id": "", "salt": "", "canary_tag": ""}
    for name in table:
        if name not in (*texts, "percentage"):
            known = ", ".join((*texts, "percentage"))
            raise Malformed(
                f"{TABLE}.{name}: unknown setting; there are {known}; what belongs to no table stands above the first"
            )
    for name in texts:
        value = table.get(name, "")
        if not isinstance(value, str) or not value.isprintable() or len(value) > 1024:
            raise Malformed(f"{TABLE}.{name}: not a string of at most 1024 printable characters")
        texts[name] = value
    percentage = table.get("percentage")
    if percentage is not None and (
        isinstance(percentage, bool) or not isinstance(percentage, int | float) or not 0 <= percentage <= 100
    ):
        raise Malformed(f"{TABLE}.percentage: not a number from 0 to 100")
    if texts["blob"]:
        _check_blob(texts["blob"])
    if texts["client_id"] and not texts["blob"]:
        raise Malformed(f"{TABLE}.client_id: there is no {TABLE}.blob that an identity would be needed for")
    if texts["client_id"] and _CLIENT_ID.fullmatch(texts["client_id"]) is None:
        raise Malformed(f"{TABLE}.client_id: not the client id of a managed identity, 8-4-4-4-12 hexadecimal digits")
    if texts["canary_tag"] and _TAG.fullmatch(texts["canary_tag"]) is None:
        raise Malformed(f'{TABLE}.canary_tag: not name:value, as in "ring:canary"')
    return Source(percentage=percentage, **texts)


def _check_blob(url: str) -> None:
    """Raises Malformed unless `url` is a blob's, without a secret in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise Malformed(f"{TABLE}.blob: not a URL") from None
    if parts.query or parts.fragment or parts.username is not None:
        raise Malformed(
            f"{TABLE}.blob: has a query or a user name; the managed identity reads the blob, so that no secret "
            "(shared access signature) has to be in the user data"
        )
    if parts.scheme != "https" or _BLOB_HOST.fullmatch(host) is None or not re.fullmatch(r"/[!-~]+/[!-~]+", parts.path):
        raise Malformed(
            f"{TABLE}.blob: not the URL of a blob, as in https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME"
        )
