"""Accounting counts every connection once when it is accepted and once, with its outcome, when it ends.

The counters are written directly into the worker's block of the shared table (`core.counters`), so they survive the
worker however it ends. `access_log` writes the lines. Neither ever looks at payload.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from relay.address import Address
from relay.core import counters, failed_dials
from relay.core.counters import CONNECT_BUCKETS, DURATION_BUCKETS, MICRO, Layout
from relay.core.limit_table import Cells
from relay.outcome import DIAL_FAILURES, Outcome
from relay.worker.connection.access_log import Record

NANO = 1_000_000_000
CACHED_SLOTS = 1024  # addresses whose counters of failed dials are found without a search


class Accounting:
    """One worker's counters. `log` writes an access line; None: there is no access log."""

    def __init__(
        self,
        block: Cells,
        layout: Layout,
        clock: Callable[[], float],
        log: Callable[[Record, Outcome, float], None] | None,
    ) -> None:
        self._block = block
        self._accepted = [layout.listener(i) + counters.ACCEPTED for i in range(layout.listeners)]
        self._cells = [_ListenerCells.of(layout, i) for i in range(layout.listeners)]
        self._first_upstream, self._upstream_size = layout.upstream(0), layout.upstream_size
        self._layout = layout
        self._failed: dict[tuple[int, Address], int] = {}  # cells of the shared table, by upstream and address
        self._clock = clock
        self._log = log

    def of_route(self, route: int) -> RouteAccounting:
        """The accounting of the connections that take a route, by its number."""
        return RouteAccounting(self, self._block, self._layout, route)

    def routed(self, up: int) -> None:
        """Count a connection that took a route; the listener's own upstream is none."""

    def accepted(self, listener: int) -> None:
        self._block[self._accepted[listener]] += 1

    def connected(self, upstream: int, seconds: float) -> None:
        block, start = self._block, self._first_upstream + upstream * self._upstream_size
        block[start] += int(seconds * NANO)
        block[start + 1 + bisect_left(CONNECT_BUCKETS, seconds)] += 1

    def dial_failed(self, upstream: int, address: Address, outcome: Outcome) -> None:
        """Count a failed dial to an address of the upstream; the outcome is one of `DIAL_FAILURES`."""
        cell = self._failed.get((upstream, address))
        if cell is None:
            if len(self._failed) >= CACHED_SLOTS:
                self._failed.clear()
            key = failed_dials.key(address[0], address[1])
            cell = failed_dials.claim(self._block, self._layout.failed(upstream), key)
            self._failed[upstream, address] = cell
        self._block[cell + DIAL_FAILURES.index(outcome)] += 1

    def moved(self, listener: int, up: int, down: int) -> None:
        block, cells = self._block, self._cells[listener]
        if up:
            block[cells.up] += up
        if down:
            block[cells.down] += down

    def closed(self, connection: Record, outcome: Outcome, up: int, down: int) -> None:
        """Count an ended connection; `up` and `down` are the bytes received since the last call of `moved`."""
        seconds = self._clock() - connection.started
        block = self._block
        up_cell, down_cell, sum_cell, outcomes, durations = self._cells[connection.frontend.index]
        if up:
            block[up_cell] += up
        if down:
            block[down_cell] += down
        block[sum_cell] += int(seconds * MICRO)
        block[durations + bisect_left(DURATION_BUCKETS, seconds)] += 1
        block[outcomes + outcome.index] += 1
        if self._log is not None:
            self._log(connection, outcome, seconds)


class RouteAccounting:
    """The accounting of one route's connections, which count for the route besides the listener."""

    def __init__(self, listeners: Accounting, block: Cells, layout: Layout, route: int) -> None:
        self._listeners = listeners
        self.accepted, self.connected, self.dial_failed = (
            listeners.accepted,
            listeners.connected,
            listeners.dial_failed,
        )
        start = layout.route(route)
        self._block = block
        self._routed = start + counters.ROUTED
        self._up, self._down = start + counters.ROUTE_BYTES_UP, start + counters.ROUTE_BYTES_DOWN
        self._outcomes = start + counters.ROUTE_OUTCOME

    def routed(self, up: int) -> None:
        """Count a connection that took the route, and the `up` bytes received from the client before."""
        self._block[self._routed] += 1
        self._block[self._up] += up

    def moved(self, listener: int, up: int, down: int) -> None:
        """Count bytes, as `Accounting` does."""
        self._listeners.moved(listener, up, down)
        self._block[self._up] += up
        self._block[self._down] += down

    def closed(self, connection: Record, outcome: Outcome, up: int, down: int) -> None:
        """Count an ended connection, as `Accounting` does."""
        self._listeners.closed(connection, outcome, up, down)
        block = self._block
        block[self._up] += up
        block[self._down] += down
        block[self._outcomes + outcome.index] += 1


class _ListenerCells(NamedTuple):
    """The cells of one listener's counters in the block, computed once: every connection needs them."""

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
