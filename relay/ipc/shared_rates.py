"""The shared memory and the locks of the rates' token buckets (`core.rates`): an anonymous file that all processes map.

The locks are record locks of that file (fcntl(2), F_SETLK), one byte each. The kernel keeps them by process and
releases those of a process that dies. A process must not close any descriptor of the file while it uses them, because
that releases its locks as well.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from relay.core.rates import SINGLES, RatePlan, Rates
from relay.ipc import memory

PAGE = 4096
HEAD = -(-8 * SINGLES // PAGE) * PAGE  # bytes of the single buckets, whole pages
PATIENCE = 0.05  # seconds to try for a lock: several time slices of a busy machine
EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB


class RecordLock:
    """Locks by number, between processes, not between threads.

    After a lock could not be acquired in time, the next attempt tries for half as long, and so on until one succeeds.
    So a stopped process that holds a lock costs the others little time, and a holder that waits for a processor causes
    few refusals.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._patience: dict[int, float] = {}  # seconds; of locks whose last attempt failed

    def acquire(self, number: int, /) -> bool:
        deadline = 0.0
        while True:
            try:
                fcntl.lockf(self._descriptor, EXCLUSIVE, 1, number)
            except (BlockingIOError, PermissionError):
                # The holder needs a few microseconds, unless it waits for a processor itself.
                now = time.monotonic()
                deadline = deadline or now + self._patience.get(number, PATIENCE)
                if now >= deadline:
                    self._patience[number] = self._patience.get(number, PATIENCE) / 2
                    return False
                os.sched_yield()
            else:
                if self._patience:
                    self._patience.pop(number, None)
                return True

    def release(self, number: int, /) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)


class RateTable:
    """The shared token buckets, mapped; another process maps them by `descriptor`."""

    def __init__(self, descriptor: int, plan: RatePlan) -> None:
        self.descriptor = descriptor
        self.plan = plan
        view = memoryview(mmap.mmap(descriptor, _size(plan)))
        cells = plan.source_cells
        self._singles = view[: 8 * SINGLES].cast("Q")
        self._hashes = view[HEAD : HEAD + 8 * cells].cast("Q")
        self._times = view[HEAD + 8 * cells : HEAD + 16 * cells].cast("Q")
        self._customers = view[HEAD + 16 * cells : HEAD + 16 * cells + 8 * plan.customers].cast("Q")

    @classmethod
    def create(cls, plan: RatePlan) -> RateTable:
        """Make a new table of full buckets. Raises OSError."""
        return cls(memory.shared("relay-rates", _size(plan)), plan)

    def forget_customer(self, slot: int) -> None:
        """Fill the bucket of a slot that goes from one customer to another."""
        self._customers[slot] = 0

    def rates(self, *, alone: bool, plan: RatePlan | None = None) -> Rates:
        """One worker's view of the buckets. `alone`: it is the only worker. `plan`: other rates than at the start."""
        lock = None if alone else RecordLock(self.descriptor)
        return Rates(
            plan or self.plan, self._singles, self._hashes, self._times, lock, time.monotonic_ns, self._customers
        )


def _size(plan: RatePlan) -> int:
    return HEAD + 16 * plan.source_cells + 8 * plan.customers
