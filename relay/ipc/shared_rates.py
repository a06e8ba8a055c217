"""The memory and the locks of `core.rates`: an anonymous file that supervisor and workers map.

The locks are record locks of that file (fcntl(2), F_SETLK), one byte each: the kernel keeps them by process and gives
back what a dead one held. A process must not close any descriptor of the file while it uses them, for that gives its
locks back as well.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from relay.core.rates import SINGLES, RatePlan, Rates
from relay.ipc import memory

PAGE = 4096
PATIENCE = 0.05  # seconds that a lock is tried for: several time slices of a busy machine
EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB


class RecordLock:
    """Locks by number, between processes. Not between threads.

    One that was not to be had is tried for half as long the next time, and so on until it is had: a process that was
    stopped while it held one costs the others little time, and one that had to wait for a processor few refusals.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._patience: dict[int, float] = {}  # seconds; of those that were not to be had the last time

    def acquire(self, number: int, /) -> bool:
        deadline = 0.0
        while True:
            try:
                fcntl.lockf(self._descriptor, EXCLUSIVE, 1, number)
            except (BlockingIOError, PermissionError):
                # Whoever holds it needs some microseconds, or has to wait for a processor itself.
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
    """The shared buckets; `descriptor` is what another process needs to map them too."""

    def __init__(self, descriptor: int, plan: RatePlan) -> None:
        self.descriptor = descriptor
        self.plan = plan
        view = memoryview(mmap.mmap(descriptor, _size(plan)))
        cells = plan.source_cells
        self._singles = view[: 8 * SINGLES].cast("Q")
        self._hashes = view[PAGE : PAGE + 8 * cells].cast("Q")
        self._times = view[PAGE + 8 * cells : PAGE + 16 * cells].cast("Q")

    @classmethod
    def create(cls, plan: RatePlan) -> RateTable:
        """A new table of full buckets. Raises OSError."""
        return cls(memory.shared("relay-rates", _size(plan)), plan)

    def rates(self, *, alone: bool, plan: RatePlan | None = None) -> Rates:
        """The buckets as one worker sees them; `alone`: there is no other. `plan`: other rates than at the start."""
        lock = None if alone else RecordLock(self.descriptor)
        return Rates(plan or self.plan, self._singles, self._hashes, self._times, lock, time.monotonic_ns)


def _size(plan: RatePlan) -> int:
    return PAGE + 16 * plan.source_cells
