"""The access log: one line for each connection when it ends. No byte of payload is ever looked at."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from relay.address import Address
from relay.log_writer import local_timestamp, timestamp
from relay.outcome import Outcome


class Listener(Protocol):
    """What a line of the access log says about the listener."""

    index: int
    name: str


class Target(Protocol):
    """What it says about the upstream."""

    @property
    def upstream(self) -> int: ...
    @property
    def address(self) -> Address | None: ...


class Hello(Protocol):
    """What it says about a client's TLS hello."""

    @property
    def server_name(self) -> str: ...
    @property
    def alpn(self) -> tuple[str, ...]: ...


class Header(Protocol):
    """What it says about the PROXY header that the connection came with."""

    @property
    def link_id(self) -> int | None: ...


class Record(Protocol):
    """What it says about a connection that has ended.

    Times are monotonic seconds; `connected` is 0 if it never was. `error` is the errno that it ended with, if it did.
    """

    @property
    def frontend(self) -> Listener: ...
    @property
    def target(self) -> Target | None: ...
    @property
    def hello(self) -> Hello | None: ...
    @property
    def header(self) -> Header | None: ...
    @property
    def error(self) -> object: ...

    client: Address
    source: Address | None
    started: float
    dialed: float
    connected: float
    bytes_up: int
    bytes_down: int


class AccessLog:
    """Writes the access line of a connection that ended, as one JSON object or as a line for people."""

    def __init__(self, write: Callable[[str], None], upstreams: Sequence[str], log_format: str) -> None:
        self._write = write
        self._upstreams = upstreams
        self._json = log_format == "json"
        # Parts that many lines share, ready as they stand in them.
        self._heads: dict[str, str] = {}
        self._targets: dict[tuple[int, Address | None], str] = {}

    def __call__(self, connection: Record, outcome: Outcome, seconds: float) -> None:
        line = self._as_json if self._json else self._as_text
        self._write(line(connection, outcome, seconds))

    def _as_json(self, connection: Record, outcome: Outcome, seconds: float) -> str:
        """Written out, since json.dumps would take more time than all else that is done for a connection's account.

        The names of listeners and upstreams are quoted by json.dumps; addresses, words and numbers need no escaping.
        """
        client, source, target = connection.client, connection.source, connection.target
        name = connection.frontend.name
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = f'"event": "connection", "listener": {json.dumps(name)}, "client": "'
        # Where it can be spared, no call for IPv4.
        client_text = f"{client[0]}:{client[1]}" if len(client) == 2 else format_address(client)
        source_text = ""
        if source is not None:
            source_text = f"{source[0]}:{source[1]}" if len(source) == 2 else format_address(source)
        connect = f"{connection.connected - connection.dialed:.6f}" if connection.connected else "null"
        # Words of a client's own choice: escaped.
        hello, header = connection.hello, connection.header
        first = NOTHING_FIRST
        if hello is not None:
            first = f'"sni": {json.dumps(hello.server_name)}, "alpn": {json.dumps(hello.alpn)}, "link_id": null'
        if header is not None and header.link_id is not None:
            first = f"{first[:-4]}{header.link_id}"
        error = f'"{error_name(connection.error)}"' if connection.error else "null"
        return (
            f'{{"time": "{timestamp(time.time())}", {head}{client_text}", {first}, '
            f'{self._target(target) if target is not None else NO_TARGET}, "source": "{source_text}", '
            f'"bytes_up": {connection.bytes_up}, "bytes_down": {connection.bytes_down}, '
            f'"connect_seconds": {connect}, "seconds": {seconds:.6f}, '
            f'"outcome": "{outcome.label}", "state": "{outcome.state}", "error": {error}}}\n'
        )

    def _target(self, target: Target) -> str:
        """The part about the upstream, kept: there are few, and many connections to each."""
        key = target.upstream, target.address
        part = self._targets.get(key)
        if part is None:
            if len(self._targets) >= TARGETS:
                self._targets.clear()
            address = format_address(target.address) if target.address else ""
            part = f'"upstream": {json.dumps(self._upstreams[target.upstream])}, "address": "{address}"'
            self._targets[key] = part
        return part

    def _as_text(self, connection: Record, outcome: Outcome, seconds: float) -> str:
        target, connected = connection.target, connection.connected
        upstream = self._upstreams[target.upstream] if target is not None else "-"
        connect = span(connected - connection.dialed) if connected else "-"
        name = json.dumps(connection.hello.server_name)[1:-1] if connection.hello is not None else ""
        link_id = connection.header.link_id if connection.header is not None else None
        error = f" {error_name(connection.error)}" if connection.error else ""
        return (
            f"{local_timestamp(time.time())} {connection.frontend.name}: "
            f"{format_address(connection.client)} -> {upstream} "
            f"{f'sni {name} ' if name else ''}{f'link {link_id} ' if link_id is not None else ''}"
            f"{outcome.label} ({outcome.state}){error} up {connection.bytes_up} B down {connection.bytes_down} B "
            f"connect {connect} total {span(seconds)}\n"
        )


NOTHING_FIRST = '"sni": "", "alpn": [], "link_id": null'
NO_TARGET = '"upstream": "", "address": ""'
TARGETS = 1024  # upstream addresses whose part of a line is kept


def format_address(address: Address) -> str:
    """host:port, or [host]:port for IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def error_name(number: object) -> str:
    """As errno(3) has it, "ETIMEDOUT"; the number itself if that has none."""
    return errno.errorcode.get(number) or str(number) if isinstance(number, int) else ""


def span(seconds: float) -> str:
    """How long something took, for people: "0.87 ms", "12.3 s", "45m 12s"."""
    if seconds < 0.01:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m" if hours else f"{minutes}m {whole}s"
