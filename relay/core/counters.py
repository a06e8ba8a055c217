"""The layout of the workers' metrics in the shared table; no I/O.

Every worker has one block of 64-bit cells and is its only writer, so an increment needs no lock. The supervisor reads
the blocks on request, so the numbers are as new as the worker's last write; they survive the worker's death, and `fold`
keeps them, so that no counter ever goes back.

A block holds gauges and counters of the worker, then one section per listener, then one per upstream, then gauges for
each pair of upstream and source address, and at the end each upstream's failed dials by address (`failed_dials`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from relay.core import failed_dials
from relay.core.limit_table import Cells, Row

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


class Layout:
    """Offsets in a block, for the given numbers of listeners, upstreams, outcomes and source addresses."""

    def __init__(self, listeners: int, upstreams: int, outcomes: int, sources: int = 1) -> None:
        self.listeners = listeners
        self.upstreams = upstreams
        self.outcomes = outcomes
        self._listener_size = OUTCOME + outcomes + len(DURATION_BUCKETS) + 1
        self._upstream_size = 1 + len(CONNECT_BUCKETS) + 1
        self.sources = sources
        # The gauges for each pair of upstream and source address.
        self.gauges = HEADER + listeners * self._listener_size + upstreams * self._upstream_size
        self.end_of_gauges = self.gauges + upstreams * sources
        self.size = self.end_of_gauges + upstreams * failed_dials.SIZE

    def listener(self, index: int) -> int:
        """The offset of the section of listener number `index`."""
        return HEADER + index * self._listener_size

    def durations(self, index: int) -> int:
        """The offset of that listener's duration histogram: one cell per bucket, the last without an upper bound."""
        return self.listener(index) + OUTCOME + self.outcomes

    def upstream(self, index: int) -> int:
        """The offset of the section of upstream number `index`: the sum in nanoseconds, then the histogram's cells."""
        return HEADER + self.listeners * self._listener_size + index * self._upstream_size

    def ports(self, upstream: int, source: int) -> int:
        """The cell with the number of local ports in use from that source address to that upstream."""
        return self.gauges + upstream * self.sources + source

    def failed(self, upstream: int) -> int:
        """The offset of the section of that upstream's failed dials."""
        return self.end_of_gauges + upstream * failed_dials.SIZE


def bucket(bounds: Sequence[float], seconds: float) -> int:
    """The index of the bucket for `seconds`; a bound belongs to its bucket, as in Prometheus (`le`)."""
    return bisect_left(bounds, seconds)


def unfinished(layout: Layout, block: Row, listener: int) -> int:
    """Connections of a listener that were accepted and have no outcome yet."""
    start = layout.listener(listener)
    ended = sum(block[start + OUTCOME + i] for i in range(layout.outcomes))
    return block[start + ACCEPTED] - ended


def fold_failed(layout: Layout, block: Row, counts: failed_dials.Counts) -> None:
    """Add a dead worker's failed dials to `counts`. Call it before `fold`, which empties the block."""
    for upstream in range(layout.upstreams):
        for key, more in failed_dials.counted(block, layout.failed(upstream)):
            failed_dials.add(counts, upstream, key, more)


def look(layout: Layout, block: Row, seen: Cells, most: int) -> None:
    """Update the snapshot `seen`, zeros at first, from a worker's block, and reject impossible values.

    A compromised worker may write anything. In the snapshot a counter never falls, and each listener has between 0 and
    `most` accepted connections without an outcome.
    """
    for cell in range(layout.end_of_gauges):
        value = block[cell]
        if value > seen[cell] or not GAUGES <= cell < layout.gauges:
            seen[cell] = value
    for upstream in range(layout.upstreams):
        failed_dials.look(block, seen, layout.failed(upstream))
    for listener in range(layout.listeners):
        accepted = layout.listener(listener) + ACCEPTED
        ended = seen[accepted] - unfinished(layout, seen, listener)
        seen[accepted] = max(ended, min(seen[accepted], ended + most))


def fold(layout: Layout, block: Cells, retired: Cells, lost: int) -> int:
    """Move a dead worker's counters into `retired`, count its open connections as outcome `lost`, and empty its block.

    Returns the number of lost connections.
    """
    total = 0
    for listener in range(layout.listeners):
        open_connections = unfinished(layout, block, listener)
        block[layout.listener(listener) + OUTCOME + lost] += open_connections
        total += open_connections
    for cell in range(layout.size):
        if GAUGES <= cell < layout.gauges:
            retired[cell] += block[cell]
        block[cell] = 0
    return total
