"""Where each number of a worker stands in the shared table: the layout only, no I/O.

Every worker has one block of 64-bit cells and is its only writer, so an increment needs no lock; the supervisor reads
the blocks whenever somebody asks, so the numbers are never older than the worker's last write and survive its death
(`fold` keeps them, so that no counter ever goes back).

A block holds gauges of the worker, then one section per listener, then one per upstream, then gauges for each pair of
upstream and source address, and at the end each upstream's failed dials by address (`failed_dials`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from relay.core import failed_dials
from relay.core.limit_table import Cells, Row

MICRO = 1_000_000  # `DURATION_SUM` is in microseconds
# Upper bounds in seconds. Connects are to a private endpoint (about 1 ms) or time out after seconds; connections of
# devices live from a fraction of a second (HTTPS) to days (MQTT).
CONNECT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DURATION_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 2700.0, 3600.0, 14400.0, 86400.0, 604800.0)

# Gauges of the worker.
HEARTBEAT = 0  # monotonic clock, nanoseconds, written by the worker's own loop
LAG = 1  # how late the loop's last tick was, nanoseconds
HELD = 2  # bytes received and not yet taken by the other side
QUEUED = 3  # connections that wait for their turn to be dialled
GAUGES = 4
# Counters of the worker.
LOG_DROPPED = 4
ACCEPT_PAUSES = 5
HEADER = 6

# Offsets within a listener's section; outcomes follow at OUTCOME, then the duration histogram.
ACCEPTED = 0
BYTES_UP = 1
BYTES_DOWN = 2
DURATION_SUM = 3  # microseconds: in nanoseconds, 20,000 connections of eleven days are more than 64 bits hold
OUTCOME = 4


class Layout:
    """Offsets of a block for that many listeners, upstreams, outcomes and source addresses."""

    def __init__(self, listeners: int, upstreams: int, outcomes: int, sources: int = 1) -> None:
        self.listeners = listeners
        self.upstreams = upstreams
        self.outcomes = outcomes
        self._listener_size = OUTCOME + outcomes + len(DURATION_BUCKETS) + 1
        self._upstream_size = 1 + len(CONNECT_BUCKETS) + 1
        self.sources = sources
        self.gauges = HEADER + listeners * self._listener_size + upstreams * self._upstream_size  # those behind
        self.end_of_gauges = self.gauges + upstreams * sources
        self.size = self.end_of_gauges + upstreams * failed_dials.SIZE

    def listener(self, index: int) -> int:
        """Where the section of listener number `index` begins."""
        return HEADER + index * self._listener_size

    def durations(self, index: int) -> int:
        """Where the histogram of that listener begins: one cell per bucket, the last one without an upper bound."""
        return self.listener(index) + OUTCOME + self.outcomes

    def upstream(self, index: int) -> int:
        """Where the section of upstream number `index` begins: the sum in nanoseconds, then the histogram's cells."""
        return HEADER + self.listeners * self._listener_size + index * self._upstream_size

    def ports(self, upstream: int, source: int) -> int:
        """Where the local ports in use from that source address to that upstream are."""
        return self.gauges + upstream * self.sources + source

    def failed(self, upstream: int) -> int:
        """Where the section of that upstream's failed dials begins."""
        return self.end_of_gauges + upstream * failed_dials.SIZE


def bucket(bounds: Sequence[float], seconds: float) -> int:
    """The number of the bucket that `seconds` falls in; a bound belongs to its bucket, as in Prometheus (`le`)."""
    return bisect_left(bounds, seconds)


def unfinished(layout: Layout, block: Row, listener: int) -> int:
    """Connections of a listener that were accepted and have no outcome yet."""
    start = layout.listener(listener)
    ended = sum(block[start + OUTCOME + i] for i in range(layout.outcomes))
    return block[start + ACCEPTED] - ended


def fold_failed(layout: Layout, block: Row, counts: failed_dials.Counts) -> None:
    """Add a dead worker's failed dials to `counts`; before `fold`, which empties its block."""
    for upstream in range(layout.upstreams):
        for key, more in failed_dials.counted(block, layout.failed(upstream)):
            failed_dials.add(counts, upstream, key, more)


def look(layout: Layout, block: Row, seen: Cells, most: int) -> None:
    """Bring `seen`, zeros at first, up to what a worker's block says, and believe no nonsense.

    A worker that was taken over writes what it likes. A counter is never less than it was seen before, and of each
    listener between none and `most` accepted connections are without an outcome.
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
    """Move a dead worker's counters into `retired` and empty its block; its open connections end as outcome `lost`.

    Returns how many those were.
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
