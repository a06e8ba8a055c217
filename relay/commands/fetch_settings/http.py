"""One GET request with a deadline for the whole answer and a bound on its size; no redirects, no proxy."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

from relay.commands.deadline import Deadline

CONNECT = 5.0  # seconds for each address of a host
SHOWN = 160  # characters of an answer that a message quotes


class FetchFailed(Exception):
    """The settings could not be fetched or used. `problems` has one line for each reason.

    `wrong`: what is published is wrong, for every machine. `again`: another attempt may succeed within seconds.
    """

    def __init__(self, *problems: str, wrong: bool = False, again: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.wrong = wrong
        self.again = again


class Answer(NamedTuple):
    """An answer of any status."""

    status: int
    etag: str  # empty if there is none
    body: bytes

    @property
    def shown(self) -> str:
        """Status and the beginning of the body, for a message."""
        text = "".join(c if c.isprintable() else " " for c in self.body[: 4 * SHOWN].decode("utf-8", "replace"))
        return f"HTTP status {self.status}" + (f": {' '.join(text.split())[:SHOWN]}" if text.strip() else "")


def get(who: str, url: str, headers: Mapping[str, str], *, seconds: float, most: int) -> Answer:
    """GET an http or https URL; the whole answer must come within `seconds` and have at most `most` bytes.

    `who` names the server in messages. Raises FetchFailed.
    """
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=min(CONNECT, seconds))
    deadline = Deadline()
    with closing(connection):
        try:
            connection.connect()
            with deadline.over(connection.sock, seconds):
                connection.sock.settimeout(seconds)
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", path, headers={**headers, "Connection": "close"})
                with closing(connection.getresponse()) as response:  # it holds the socket open on its own
                    body = response.read(most + 1)
                    if deadline.passed:
                        raise TimeoutError
                    if len(body) > most:
                        raise FetchFailed(f"{who}: the answer has more than {most} bytes", again=True)
                    if response.length:
                        raise http.client.IncompleteRead(body)
                    return Answer(response.status, response.getheader("ETag", ""), body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchFailed(f"{who}: {_reason(error, seconds, late=deadline.passed)}", again=True) from None


def _reason(error: Exception, seconds: float, *, late: bool) -> str:
    if late or isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s" if late else "no connection, or no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ends in the middle"
    if isinstance(error, http.client.HTTPException):
        return "what answers there does not speak HTTP"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
