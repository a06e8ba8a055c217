"""The access log: one line for each connection when it ends. It never contains payload."""

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
    """The fields of a listener that an access line contains."""

    index: int
    name: str
    route_name: str


class Target(Protocol):
    """The fields of an upstream that an access line contains."""

    @property
    def upstream(self) -> int: ...
    @property
    def address(self) -> Address | None: ...


class Hello(Protocol):
    """The fields of a ClientHello that an access line contains."""

    @property
    def server_name(self) -> str: ...
    @property
    def alpn(self) -> tuple[str, ...]: ...


class Header(Protocol):
    """The field of a received PROXY header that an access line contains."""

    @property
    def link_id(self) -> int | None: ...


class Record(Protocol):
    """The fields of an ended connection that an access line contains.

    Times are monotonic seconds; `connected` is 0 if the upstream never connected. `error` is the errno that ended the
    connection, if there was one.
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
    @property
    def customer_name(self) -> str: ...

    client: Address
    source: Address | None
    started: float
    dialed: float
    connected: float
    bytes_up: int
    bytes_down: int


class AccessLog:
    """Writes the access line of an ended connection, as a JSON object or as text for people."""

    def __init__(self, write: Callable[[str], None], upstreams: Sequence[str], log_format: str) -> None:
        self._write = write
        self._upstreams = upstreams
        self._json = log_format == "json"
        # Cached parts that many lines have in common, already formatted.
        self._heads: dict[tuple[str, str], str] = {}
        self._targets: dict[tuple[int, Address | None], str] = {}

    def __call__(self, connection: Record, outcome: Outcome, seconds: float) -> None:
        line = self._as_json if self._json else self._as_text
        self._write(line(connection, outcome, seconds))

    def _as_json(self, connection: Record, outcome: Outcome, seconds: float) -> str:
        """Format the JSON line by hand: json.dumps would take longer than all other accounting of a connection.

        Names of listeners and upstreams are quoted by json.dumps; names of customers, addresses, labels and numbers
        need no escaping.
        """
        client, source, target = connection.client, connection.source, connection.target
        frontend = connection.frontend
        key = frontend.name, frontend.route_name
        head = self._heads.get(key)
        if head is None:
            name, route = map(json.dumps, key)
            head = f'"event": "connection", "listener": {name}, "route": {route}, "customer": "'
            self._heads[key] = head
        # IPv4 is formatted inline, which saves a call.
        client_text = f"{client[0]}:{client[1]}" if len(client) == 2 else format_address(client)
        source_text = ""
        if source is not None:
            source_text = f"{source[0]}:{source[1]}" if len(source) == 2 else format_address(source)
        connect = f"{connection.connected - connection.dialed:.6f}" if connection.connected else "null"
        # These values come from the client, so they are escaped.
        hello, header = connection.hello, connection.header
        preread = NO_PREREAD
        if hello is not None:
            preread = f'"sni": {json.dumps(hello.server_name)}, "alpn": {json.dumps(hello.alpn)}, "link_id": null'
        if header is not None and header.link_id is not None:
            preread = f"{preread[:-4]}{header.link_id}"
        error = f'"{error_name(connection.error)}"' if connection.error else "null"
        return (
            f'{{"time": "{timestamp(time.time())}", {head}{connection.customer_name}", '
            f'"client": "{client_text}", {preread}, '
            f'{self._target(target) if target is not None else NO_TARGET}, "source": "{source_text}", '
            f'"bytes_up": {connection.bytes_up}, "bytes_down": {connection.bytes_down}, '
            f'"connect_seconds": {connect}, "seconds": {seconds:.6f}, '
            f'"outcome": "{outcome.label}", "state": "{outcome.state}", "error": {error}}}\n'
        )

    def _target(self, target: Target) -> str:
        """The part about the upstream, cached: few upstream addresses serve many connections."""
        key = target.upstream, target.address
        part = self._targets.get(key)
        if part is None:
            if len(self._targets) >= CACHED_TARGETS:
                self._targets.clear()
            address = format_address(target.address) if target.address else ""
            part = f'"upstream": {json.dumps(self._upstreams[target.upstream])}, "address": "{address}"'
            self._targets[key] = part
        return part

    def _as_text(self, connection: Record, outcome: Outcome, seconds: float) -> str:
        target, connected, customer = connection.target, connection.connected, connection.customer_name
        upstream = self._upstreams[target.upstream] if target is not None else "-"
        connect = span(connected - connection.dialed) if connected else "-"
        route = connection.frontend.route_name
        name = json.dumps(connection.hello.server_name)[1:-1] if connection.hello is not None else ""
        link_id = connection.header.link_id if connection.header is not None else None
        error = f" {error_name(connection.error)}" if connection.error else ""
        return (
            f"{local_timestamp(time.time())} {connection.frontend.name}: "
            f"{format_address(connection.client)}{f' ({customer})' if customer else ''} -> {upstream} "
            f"{f'route {route} ' if route else ''}"
            f"{f'sni {name} ' if name else ''}{f'link {link_id} ' if link_id is not None else ''}"
            f"{outcome.label} ({outcome.state}){error} up {connection.bytes_up} B down {connection.bytes_down} B "
            f"connect {connect} total {span(seconds)}\n"
        )


NO_PREREAD = '"sni": "", "alpn": [], "link_id": null'
NO_TARGET = '"upstream": "", "address": ""'
CACHED_TARGETS = 1024  # upstream addresses


def format_address(address: Address) -> str:
    """Format as host:port, or as [host]:port for IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def error_name(number: object) -> str:
    """The name of an errno in errno(3), such as "ETIMEDOUT"; the number itself if it has no name."""
    return errno.errorcode.get(number) or str(number) if isinstance(number, int) else ""


def span(seconds: float) -> str:
    """Format a duration for people: "0.87 ms", "12.3 s", "45m 12s"."""
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
