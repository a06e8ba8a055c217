"""Accounting: every accepted connection is counted once when it comes and once, with its outcome, when it ends.

The numbers go straight into the worker's block of the shared table (`core.counters`), so they are there however the
worker ends. The access log gets one line per connection. No byte of payload is ever looked at.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from relay.core import counters
from relay.core.counters import CONNECT_BUCKETS, DURATION_BUCKETS, Layout
from relay.core.limit_table import Cells
from relay.engines.contract import Address
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


class Record(Protocol):
    """What it says about a connection that has ended. Times are monotonic seconds; `connected` is 0 if it never was."""

    @property
    def frontend(self) -> Listener: ...
    @property
    def target(self) -> Target | None: ...
    @property
    def hello(self) -> Hello | None: ...

    client: Address
    source: Address | None
    started: float
    dialed: float
    connected: float
    bytes_up: int
    bytes_down: int


NANO = 1_000_000_000


class Ledger:
    """One worker's counters. `log` takes an access line, or is None where there is no access log."""

    def __init__(
        self,
        block: Cells,
        layout: Layout,
        listeners: Sequence[str],
        upstreams: Sequence[str],
        clock: Callable[[], float],
        log: Callable[[Record, Outcome, float], None] | None,
    ) -> None:
        self._block = block
        self._accepted = [layout.listener(i) + counters.ACCEPTED for i in range(len(listeners))]
        self._cells = [_ListenerCells.of(layout, i) for i in range(len(listeners))]
        self._upstreams = [layout.upstream(i) for i in range(len(upstreams))]
        self._clock = clock
        self._log = log

    def accepted(self, listener: int) -> None:
        self._block[self._accepted[listener]] += 1

    def connected(self, upstream: int, seconds: float) -> None:
        block, start = self._block, self._upstreams[upstream]
        block[start] += int(seconds * NANO)
        block[start + 1 + bisect_left(CONNECT_BUCKETS, seconds)] += 1

    def moved(self, listener: int, up: int, down: int) -> None:
        block, cells = self._block, self._cells[listener]
        if up:
            block[cells.up] += up
        if down:
            block[cells.down] += down

    def closed(self, connection: Record, outcome: Outcome, up: int, down: int) -> None:
        """A connection has ended, and these bytes more were received since they were told of last."""
        seconds = self._clock() - connection.started
        block = self._block
        up_cell, down_cell, sum_cell, outcomes, durations = self._cells[connection.frontend.index]
        if up:
            block[up_cell] += up
        if down:
            block[down_cell] += down
        block[sum_cell] += int(seconds * NANO)
        block[durations + bisect_left(DURATION_BUCKETS, seconds)] += 1
        block[outcomes + outcome.index] += 1
        if self._log is not None:
            self._log(connection, outcome, seconds)


class _ListenerCells(NamedTuple):
    """Where the numbers of one listener stand; looked up for every connection."""

    up: int
    down: int
    duration_sum: int
    outcomes: int
    durations: int

    @classmethod
    def of(cls, layout: Layout, index: int) -> _ListenerCells:
        start = layout.listener(index)
        return cls(
            start + counters.BYTES_UP,
            start + counters.BYTES_DOWN,
            start + counters.DURATION_SUM,
            start + counters.OUTCOME,
            layout.durations(index),
        )


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
        hello = connection.hello
        hello_text = NO_HELLO
        if hello is not None:
            hello_text = f'"sni": {json.dumps(hello.server_name)}, "alpn": {json.dumps(hello.alpn)}'
        return (
            f'{{"time": "{timestamp(time.time())}", {head}{client_text}", {hello_text}, '
            f'{self._target(target) if target is not None else NO_TARGET}, "source": "{source_text}", '
            f'"bytes_up": {connection.bytes_up}, "bytes_down": {connection.bytes_down}, '
            f'"connect_seconds": {connect}, "seconds": {seconds:.6f}, '
            f'"outcome": "{outcome.label}", "state": "{outcome.state}"}}\n'
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
        connect = f"{round(connected - connection.dialed, 6)} s" if connected else "-"
        name = json.dumps(connection.hello.server_name)[1:-1] if connection.hello is not None else ""
        return (
            f"{timestamp(time.time())} {connection.frontend.name}: {format_address(connection.client)} -> {upstream} "
            f"{f'sni {name} ' if name else ''}"
            f"{outcome.label} ({outcome.state}) up {connection.bytes_up} B down {connection.bytes_down} B "
            f"connect {connect} total {round(seconds, 6)} s\n"
        )


NO_HELLO = '"sni": "", "alpn": []'
NO_TARGET = '"upstream": "", "address": ""'
TARGETS = 1024  # upstream addresses whose part of a line is kept


def format_address(address: Address) -> str:
    """host:port, or [host]:port for IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def timestamp(seconds: float) -> str:
    """UTC, RFC 3339, milliseconds."""
    whole = int(seconds)
    return f"{_to_the_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _to_the_second(whole: int) -> str:
    """The part that all lines of one second share."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
