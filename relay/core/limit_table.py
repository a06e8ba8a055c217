"""The shared table of the connection counts: its layout, its size, and the supervisor's operations on it.

A row has one column per worker. The first row has the workers' sequence numbers, the second their connections in all,
and each further row their connections of one listener. Customers have rows of the same kind in a region of their own,
one for each slot (`customer_slots`); it is as large as there may ever be customers, and only the pages of those who had
a connection take memory. Sources have tables of their own, with a region per worker. The workers' algorithm is in
`limits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, overload

WAYS = 16  # slots of one source bucket; sized so that a full bucket is less likely than 1e-9 at the configured load


class Row(Protocol):
    """A read-only sequence of unsigned integers."""

    def __getitem__(self, index: int, /) -> int: ...


class MutableRow(Row, Protocol):
    """A row whose numbers can be changed one by one."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Cells(MutableRow, Protocol):
    """A mutable sequence of unsigned integers: a `memoryview` over shared memory, or a plain list in tests."""

    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> Iterable[int]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LimitPlan:
    """The limits, in connections; 0 means unlimited, except for `instance` and `capacity`."""

    workers: int  # number of workers
    instance: int
    capacity: int  # per worker: connections that its descriptor limit allows
    listeners: tuple[int, ...]
    per_source: int = 0
    source_buckets: int = 0  # power of two, per worker; above 0 if per_source is set, or a reload may set it
    sources_counted: bool = True  # per_source is set, or was before
    customers: int = 0  # slots for customers, whose limits are in their own table (`core.customers`)

    @property
    def total_capacity(self) -> int:
        """Connections that the descriptor limits of all workers allow."""
        return self.capacity * self.workers

    @property
    def count_cells(self) -> int:
        """Size of the count table in cells: a row of sequence numbers, the instance's row, a row per listener."""
        return self.workers * (2 + len(self.listeners))

    @property
    def source_cells(self) -> int:
        """Size of the source table in cells, all workers together."""
        return self.workers * self.source_buckets * WAYS

    @property
    def customer_cells(self) -> int:
        """Size of the customers' rows in cells."""
        return self.workers * self.customers


def source_buckets(connections_per_worker: int) -> int:
    """Buckets for a worker with that many sources at once: a mean load of at most 2 of 16 slots."""
    buckets = 64
    while buckets * 2 < connections_per_worker:
        buckets *= 2
    return buckets


def clear_column(plan: LimitPlan, column: int, counts: Cells, sources: Cells) -> None:
    """Give back the connections of a dead worker. Only for the supervisor, after the worker's process has ended."""
    for row in range(plan.count_cells // plan.workers):
        counts[row * plan.workers + column] = 0
    region = plan.source_buckets * WAYS if plan.sources_counted else 0
    for cell in range(column * region, (column + 1) * region):
        if sources[cell]:
            sources[cell] = 0


def clear_customers(plan: LimitPlan, column: int, customers: Cells, used: int) -> None:
    """Give back a dead worker's connections in the rows of the first `used` customers, as `clear_column` does.

    Rows beyond are left untouched: reading them would make the kernel allocate their pages.
    """
    for cell in range(column, used * plan.workers, plan.workers):
        if customers[cell]:
            customers[cell] = 0


def total_held(plan: LimitPlan, counts: Row) -> int:
    """Connections held by all workers together."""
    return sum(counts[cell] for cell in range(plan.workers, 2 * plan.workers))
