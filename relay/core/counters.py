"""The layout of the workers' metrics in the shared table; no I/O.

Every worker has one block of 64-bit cells and is its only writer, so an increment needs no lock. The supervisor reads
the blocks on request, so the numbers are as new as the worker's last write; they survive the worker's death, and `fold`
keeps them, so that no counter ever goes back.

A block holds gauges and counters of the worker, then one section per listener, one per upstream and one per route of
each listener, then gauges for each pair of upstream and source address, and at the end each upstream's failed dials by
address (`failed_dials`). There is room for many more than are in use (`Used`): every walk over a block keeps to those,
and the pages of the others take no memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from relay.core import failed_dials
from relay.core.limit_table import MutableRow, Row

MICRO = 1_000_000  # `DURATION_SUM` is in microseconds
# Upper bounds of the histograms' buckets, in seconds. Connects take about 1 ms (a private endpoint) or time out after
# seconds; devices' connections last from a fraction of a second (HTTPS) to days (MQTT).
CONNECT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DURATION_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 2700.0, 3600.0, 14400.0, 86400.0, 604800.0)

# The most upstreams and routes (of each listener) over the life of a process. Pages that are not used take no memory.
UPSTREAM_SLOTS, ROUTE_SLOTS = 1024, 2048

# Gauges of the worker.
HEARTBEAT = 0  # monotonic clock, nanoseconds, written by the worker's own loop
LAG = 1  # how late the loop's last tick was, nanoseconds
HELD = 2  # bytes received and not yet taken by the other side
QUEUED = 3  # connections in the dial queue
GAUGES = 4
# Counters of the worker.
LOG_DROPPED = 4
ACCEPT_PAUSES = 5
HEADER = 6

# Offsets within a listener's section; outcomes follow at OUTCOME, then the duration histogram.
ACCEPTED = 0
BYTES_UP = 1
BYTES_DOWN = 2
DURATION_SUM = 3  # microseconds: in nanoseconds, 20,000 connections of eleven days would overflow 64 bits
OUTCOME = 4
# Offsets within a route's section; outcomes follow at ROUTE_OUTCOME.
ROUTED = 0  # connections that took the route
ROUTE_BYTES_UP = 1
ROUTE_BYTES_DOWN = 2
ROUTE_OUTCOME = 3


class Used(NamedTuple):
    """How many numbers are in use; they are given from 0 on, and never given back."""

    listeners: int
    upstreams: int
    routes: int = 0


class SparseRow(dict[int, int]):
    """A row for all cells of a layout, of which only those are kept that were not zero."""

    def __missing__(self, _cell: int) -> int:
        return 0


class Layout:
    """Offsets in a block, for the given numbers of listeners, upstreams, outcomes, source addresses and routes."""

    def __init__(self, listeners: int, upstreams: int, outcomes: int, sources: int = 1, routes: int = 0) -> None:
        self.listeners = listeners
        self.upstreams = upstreams
        self.routes = routes
        self.outcomes = outcomes
        self._listener_size = OUTCOME + outcomes + len(DURATION_BUCKETS) + 1
        self.upstream_size = 1 + len(CONNECT_BUCKETS) + 1
        self._route_size = ROUTE_OUTCOME + outcomes
        self.sources = sources
        self._upstreams = HEADER + listeners * self._listener_size
        self._routes = self._upstreams + upstreams * self.upstream_size
        # The gauges for each pair of upstream and source address.
        self.gauges = self._routes + routes * self._route_size
        self.end_of_gauges = self.gauges + upstreams * sources
        self.size = self.end_of_gauges + upstreams * failed_dials.SIZE

    @property
    def all(self) -> Used:
        """Every number that there is room for."""
        return Used(self.listeners, self.upstreams, self.routes)

    def listener(self, index: int) -> int:
        """The offset of the section of listener number `index`."""
        return HEADER + index * self._listener_size

    def durations(self, index: int) -> int:
        """The offset of that listener's duration histogram: one cell per bucket, the last without an upper bound."""
        return self.listener(index) + OUTCOME + self.outcomes

    def upstream(self, index: int) -> int:
        """The offset of the section of upstream number `index`: the sum in nanoseconds, then the histogram's cells."""
        return self._upstreams + index * self.upstream_size

    def route(self, index: int) -> int:
        """The offset of the section of route number `index`."""
        return self._routes + index * self._route_size

    def ports(self, upstream: int, source: int) -> int:
        """The cell with the number of local ports in use from that source address to that upstream."""
        return self.gauges + upstream * self.sources + source

    def failed(self, upstream: int) -> int:
        """The offset of the section of that upstream's failed dials."""
        return self.end_of_gauges + upstream * failed_dials.SIZE

    def counters(self, used: Used) -> Iterator[tuple[int, int]]:
        """First cell and end of each run of cells before `gauges` that is in use, the worker's own cells first."""
        yield 0, self.listener(used.listeners)
        yield self._upstreams, self.upstream(used.upstreams)
        yield self._routes, self.route(used.routes)

    def runs(self, used: Used) -> Iterator[tuple[int, int]]:
        """First cell and end of each run of cells in use."""
        yield from self.counters(used)
        yield self.gauges, self.gauges + used.upstreams * self.sources
        yield self.end_of_gauges, self.failed(used.upstreams)


def bucket(bounds: Sequence[float], seconds: float) -> int:
    """The index of the bucket for `seconds`; a bound belongs to its bucket, as in Prometheus (`le`)."""
    return bisect_left(bounds, seconds)


def unfinished(layout: Layout, block: Row, listener: int) -> int:
    """Connections of a listener that were accepted and have no outcome yet."""
    start = layout.listener(listener)
    return _open(block, start + ACCEPTED, start + OUTCOME, layout.outcomes)


def on_route(layout: Layout, block: Row, route: int) -> int:
    """Connections that took a route and have no outcome yet."""
    start = layout.route(route)
    return _open(block, start + ROUTED, start + ROUTE_OUTCOME, layout.outcomes) if block[start + ROUTED] else 0


def _open(block: Row, begun: int, outcomes: int, count: int) -> int:
    return block[begun] - sum([block[cell] for cell in range(outcomes, outcomes + count)])


def totals(layout: Layout, used: Used, rows: Sequence[Row]) -> list[int]:
    """The sums of all rows, cell by cell before `layout.gauges`; a gauge among them has no meaning as a sum."""
    found = [0] * layout.gauges
    for start, end in layout.counters(used):
        for cell in range(start, end):
            found[cell] = sum([row[cell] for row in rows])
    return found


def fold_failed(layout: Layout, block: Row, counts: failed_dials.Counts, used: Used | None = None) -> None:
    """Add a dead worker's failed dials to `counts`. Call it before `fold`, which empties the block."""
    for upstream in range((used or layout.all).upstreams):
        for key, more in failed_dials.counted(block, layout.failed(upstream)):
            failed_dials.add(counts, upstream, key, more)


def look(layout: Layout, block: Row, seen: MutableRow, most: int, used: Used | None = None) -> None:
    """Update the snapshot `seen`, zeros at first, from a worker's block, and reject impossible values.

    A compromised worker may write anything. In the snapshot a counter never falls, and each listener and each route has
    between 0 and `most` connections without an outcome.
    """
    used = used or layout.all
    runs = [(0, layout.listener(used.listeners)), (layout.upstream(0), layout.upstream(used.upstreams))]
    # Of many routes few may be taken; one that nobody took has nothing to count.
    routes = [route for route in range(used.routes) if block[layout.route(route) + ROUTED]]
    runs += [(layout.route(route), layout.route(route + 1)) for route in routes]
    for start, end in runs:
        for cell in range(start, end):
            value = block[cell]
            if cell < GAUGES or (value and value > seen[cell]):
                seen[cell] = value
    for cell in range(layout.gauges, layout.gauges + used.upstreams * layout.sources):
        if seen[cell] != (value := block[cell]):
            seen[cell] = value
    for upstream in range(used.upstreams):
        failed_dials.look(block, seen, layout.failed(upstream))
    for listener in range(used.listeners):
        begun = layout.listener(listener) + ACCEPTED
        _bound(seen, begun, seen[begun] - unfinished(layout, seen, listener), most)
    for route in routes:
        begun = layout.route(route) + ROUTED
        _bound(seen, begun, seen[begun] - on_route(layout, seen, route), most)


def _bound(seen: MutableRow, begun: int, ended: int, most: int) -> None:
    bounded = max(ended, min(seen[begun], ended + most))
    if seen[begun] != bounded:
        seen[begun] = bounded


def fold(layout: Layout, block: MutableRow, retired: MutableRow, lost: int, used: Used | None = None) -> int:
    """Move a dead worker's counters into `retired`, count its open connections as outcome `lost`, and empty its block.

    Returns the number of lost connections.
    """
    used = used or layout.all
    total = 0
    for listener in range(used.listeners):
        open_connections = unfinished(layout, block, listener)
        block[layout.listener(listener) + OUTCOME + lost] += open_connections
        total += open_connections
    for route in range(used.routes):
        block[layout.route(route) + ROUTE_OUTCOME + lost] += on_route(layout, block, route)
    for start, end in layout.counters(used):
        for cell in range(max(start, GAUGES), end):
            if value := block[cell]:
                retired[cell] += value
    for start, end in layout.runs(used):
        for cell in range(start, end):
            if block[cell]:
                block[cell] = 0
    return total
