"""Runs the limits one memory access at a time, so that any interleaving of several workers can be looked at.

`Limits` keeps nothing of its own between two calls: what it does next depends on its arguments and
on what it has read so far. So a worker that has stopped in the middle is nothing but the list of its answers (`tape`):
called again with cells that answer from the tape, it comes to the very same place, where the cells raise `Paused` with
the next access. No thread is needed, a state can be copied, and the code under test is the real one.

A worker's reads of its own column are no points of preemption: nobody else writes there.

`Process` goes on against a memory for as many accesses as a schedule says; `automaton` makes a graph of the states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, overload

from relay.core import limit_table
from relay.core.limit_table import LimitPlan, clear_column, clear_customers
from relay.core.limits import NO_CUSTOMER, CustomerLease, Lease, Limits

READ, WRITE, FENCE = "read", "write", "fence"


class Access(NamedTuple):
    kind: str
    address: int = 0
    value: int = 0


class Acquire(NamedTuple):
    listener: int = 0
    source: int = 0
    customer: int = NO_CUSTOMER


class Release(NamedTuple):
    """Of the lease that the worker has held longest; nothing if it holds none."""


class Clear(NamedTuple):
    """What the supervisor does for a dead worker."""

    column: int


Operation = Acquire | Release | Clear


class Place(NamedTuple):
    """What an admitted connection holds."""

    listener: int
    source: int
    slot: int
    customer: int = NO_CUSTOMER


class Paused(BaseException):
    """The tape is at its end; the code under test wants to make this access."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.access = access


class View:
    """A section of the memory as the code under test sees it."""

    def __init__(self, start: int, size: int, access: Callable[[Access], int]) -> None:
        self._start = start
        self._size = size
        self._access = access

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[int]: ...
    def __getitem__(self, index: int | slice, /) -> int | list[int]:
        if isinstance(index, slice):  # one after the other
            return [self[each] for each in range(*index.indices(self._size))]
        assert 0 <= index < self._size
        return self._access(Access(READ, self._start + index))

    def __setitem__(self, index: int, value: int, /) -> None:
        assert 0 <= index < self._size
        assert 0 <= value < 1 << 64, "cells are unsigned"
        self._access(Access(WRITE, self._start + index, value))


@dataclass(frozen=True)
class System:
    """What is being run: a plan, and the implementation, so that broken ones can be shown to be found."""

    plan: LimitPlan
    limits_type: type[Limits] = Limits
    fences: bool = True
    customer_limits: tuple[int, ...] = ()  # as many as the plan has slots for customers

    @property
    def size(self) -> int:
        return self.plan.count_cells + 2 * self.plan.source_cells + self.plan.customer_cells

    def run(
        self, column: int, operation: Operation, held: tuple[Place, ...], access: Callable[[Access], int]
    ) -> object:
        """One operation of the code under test, every access of which goes through `access`."""
        plan = self.plan
        cells, slots = plan.count_cells, plan.source_cells
        counts = View(0, cells, access)
        hashes, sources = View(cells, slots, access), View(cells + slots, slots, access)
        customers = View(cells + 2 * slots, plan.customer_cells, access)
        if isinstance(operation, Clear):
            clear_customers(plan, operation.column, customers, plan.customers)
            clear_column(plan, operation.column, counts, sources)
            return None

        def fence() -> None:
            if self.fences:
                access(Access(FENCE))

        worker = self.limits_type(plan, column, counts, hashes, sources, fence, customers, self.customer_limits)
        if isinstance(operation, Acquire):
            if operation.customer != NO_CUSTOMER:
                return worker.acquire_for(operation.customer, operation.listener, operation.source)
            return worker.acquire(operation.listener, operation.source)
        if held:
            _, _, _, customer = place = held[0]
            lease = Lease(worker, place.listener, place.slot)
            if customer != NO_CUSTOMER:
                lease = CustomerLease(worker, place.listener, place.slot, customer)
            lease.release()
        return None

    def private(self, column: int, access: Access) -> bool:
        """Whether nobody but this column's owner ever writes there, so that reading it commutes with everything."""
        if access.kind == FENCE:
            return True
        if access.kind == WRITE:
            return False
        plan = self.plan
        if access.address < plan.count_cells:
            return access.address % plan.workers == column
        if (cell := access.address - plan.count_cells - 2 * plan.source_cells) >= 0:
            return cell % plan.workers == column
        slot = (access.address - plan.count_cells) % max(1, plan.source_cells)
        return slot // (plan.source_buckets * limit_table.WAYS) == column

    def outcome(self, operation: Operation, held: tuple[Place, ...], result: object) -> tuple[Place, ...]:
        """What the worker holds after the operation."""
        if isinstance(operation, Acquire) and isinstance(result, Lease):
            return (*held, Place(operation.listener, operation.source, result._slot, operation.customer))
        return held[1:] if isinstance(operation, Release) else held


class Ended(NamedTuple):
    """An operation is over."""

    operation: Operation
    result: object


class Process:
    """A worker with its program, stopped between two accesses to `memory`."""

    def __init__(self, system: System, column: int, program: list[Operation], memory: list[int]) -> None:
        self.system = system
        self.column = column
        self.program = program
        self.memory = memory
        self.held: tuple[Place, ...] = ()
        self.tape: list[int] = []
        self.begun = False  # something was written in the operation under way

    @property
    def owned(self) -> tuple[Place, ...]:
        """The leases that hold a connection: not the one that is being given back."""
        giving_back = self.begun and isinstance(self.program[0], Release)
        return self.held[1:] if giving_back else self.held

    def run(self, accesses: int) -> Ended | None:
        """Make that many accesses, at most to the end of the operation; what ended, if it did."""
        position, left = 0, accesses

        def access(wanted: Access) -> int:
            nonlocal position, left
            if position == len(self.tape):
                if not self.system.private(self.column, wanted):
                    if not left:
                        raise Paused(wanted)
                    left -= 1
                if wanted.kind == WRITE:
                    self.memory[wanted.address] = wanted.value
                    self.begun = True
                self.tape.append(self.memory[wanted.address] if wanted.kind == READ else 0)
            position += 1
            return self.tape[position - 1]

        operation = self.program[0]
        try:
            result = self.system.run(self.column, operation, self.held, access)
        except Paused:
            return None
        self.held = self.system.outcome(operation, self.held, result)
        self.program.pop(0)
        self.tape.clear()
        self.begun = False
        return Ended(operation, result)
