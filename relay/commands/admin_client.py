"""The client of the admin port: sends one HTTP request to a running relay and verifies that a relay answered it.

`request` takes any path, `fetch` gets /status, `post` sends an order; `at_bind` makes a URL from a value of
`admin.bind`. An answer counts only with `Server: relay/VERSION`, because another program may have the port. Redirects
are not followed: a relay sends none. http_proxy is ignored: an admin port is on this machine or a management network.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.parse
from contextlib import closing
from typing import Any, NamedTuple, cast

from relay.address import format_hostport, parse_hostport
from relay.commands.deadline import Deadline
from relay.supervisor.admin.status_schema import RelayStatus

DEFAULT = "http://127.0.0.1:8414"  # URL of the default of admin.bind
TIMEOUT = 5.0  # seconds for a whole answer
POST_TIMEOUT = 10.0  # seconds; a reload binds sockets and reads files
LARGEST = 1 << 26  # bytes read of an answer

_RELAY = re.compile(r"relay/(\S+)")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NoAdminPort(Exception):
    """The command line or the settings give no URL of an admin port; the text says what to write instead."""


class Unreachable(Exception):
    """No relay answers at a URL; the text has the URL and the reason.

    `gone`: no relay is there, because the connection is refused or another program answers. Else a relay may be there
    and be busy.
    """

    def __init__(self, text: str, *, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


class Refused(Exception):
    """The relay refuses an order; the text says why."""


class Answer(NamedTuple):
    """A relay's answer: the URL, the version of the relay, the HTTP status and the body."""

    url: str
    version: str
    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, stripped of white space."""
        return self.body.decode("utf-8", "replace").strip()

    def table(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Unreachable if the body is anything else."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.unexpected()
        return found

    def unexpected(self) -> Unreachable:
        """The error to raise for an answer that no relay of this version would give."""
        start = self.body[:80].decode("utf-8", "replace")
        return Unreachable(
            f"{self.url}: relay {self.version} answers status {self.status} and {start!r}, which this command does "
            "not understand; use the command of the same version"
        )


def at_bind(bind: str) -> str:
    """The admin port's URL for a value of `admin.bind`; a wildcard address becomes loopback. Raises NoAdminPort."""
    if not bind:
        raise NoAdminPort("admin.bind is empty, so that relay has no admin port: set it and restart, or use signals")
    try:
        host, port = parse_hostport(bind, allow_name=False)
    except ValueError as error:
        raise NoAdminPort(f'admin.bind: "{bind}" {error}') from None
    if port == 0:
        raise NoAdminPort(f"admin.bind is {bind}: relay says in its log which port it was given; use --admin URL")
    return f"http://{format_hostport(_WILDCARDS.get(host, host), port)}"


def fetch(admin: str, *, timeout: float = TIMEOUT) -> RelayStatus:
    """GET /status from the admin port at the URL `admin`. Raises Unreachable or NoAdminPort."""
    answer = request(admin, "/status", timeout=timeout)
    if answer.status != 200:
        raise answer.unexpected()
    return cast(RelayStatus, answer.table())


def post(admin: str, path: str, *, accepted: int = 200) -> Answer:
    """POST an order to the admin port; return the answer if its status is `accepted`.

    Raises Refused if the relay refuses the order (409, or 403 if the request looks like another site's), and
    Unreachable or NoAdminPort.
    """
    answer = request(admin, path, method="POST", timeout=POST_TIMEOUT)
    if answer.status in (403, 409):
        raise Refused(answer.text or f"HTTP status {answer.status}")
    if answer.status != accepted:
        raise answer.unexpected()
    return answer


def request(admin: str, path: str, *, method: str = "GET", timeout: float = TIMEOUT) -> Answer:
    """Send one request to the admin port at the URL `admin`; the whole answer must come within `timeout` seconds.

    Raises Unreachable, and NoAdminPort if `admin` is not a URL.
    """
    connection, prefix = _connection(admin, timeout)
    url = admin.rstrip("/") + path
    deadline = Deadline()
    with closing(connection):
        try:
            connection.connect()
            with deadline.over(connection.sock, timeout):
                connection.request(method, prefix + path, headers={"Connection": "close"})
                response = connection.getresponse()
                server = response.getheader("Server", "")
                body = response.read(LARGEST)
                if deadline.passed or response.length:
                    raise http.client.IncompleteRead(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(url, error, f"no answer within {timeout:g} s" if deadline.passed else "") from None
    match = _RELAY.match(server)
    if match is None:
        what = f"Server: {server[:80]!r}" if server else "no Server header"
        raise Unreachable(
            f"{url}: what answers there is no relay ({what}, status {response.status}); "
            "is this the admin.bind of the relay that is meant? See --admin and --config",
            gone=True,
        )
    return Answer(url, match[1], response.status, body)


def _connection(admin: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """An unconnected HTTP connection for a URL, and the prefix for each path. Raises NoAdminPort."""
    try:
        parts = urllib.parse.urlsplit(admin)
        host, port = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
            raise ValueError
    except ValueError:
        raise NoAdminPort(f"--admin {admin}: not a URL; expected for instance {DEFAULT}") from None
    if parts.scheme == "https":  # the operator has put a proxy that terminates TLS in front
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), parts.path.rstrip("/")
    return http.client.HTTPConnection(host, port, timeout=timeout), parts.path.rstrip("/")


def _unreachable(url: str, error: Exception, why: str) -> Unreachable:
    if isinstance(error, TimeoutError):
        why = why or "no answer in time"
    elif isinstance(error, http.client.HTTPException):
        why = why or "what answers there does not speak HTTP"
    reason = why or getattr(error, "strerror", None) or error
    gone = isinstance(error, ConnectionRefusedError)
    return Unreachable(f"no relay answers at {url}: {reason}; does it run, and is its admin.bind this?", gone=gone)
