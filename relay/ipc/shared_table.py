"""The memory that supervisor and workers share: the limits' counts and every worker's counters, in one anonymous file.

The supervisor makes it (`memory`) and hands its descriptor to each worker, which maps it. It never grows or shrinks,
and goes away with the last process that has it. What stands where is said by `core.limits` and `core.counters`.
"""

from __future__ import annotations

import mmap
import threading

from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan
from relay.core.limits import Limits
from relay.ipc import memory

PAGE = 4096


class Table:
    """The shared memory, mapped; `descriptor` is what another process needs to map it too."""

    def __init__(self, descriptor: int, plan: LimitPlan, layout: Layout) -> None:
        self.descriptor = descriptor
        self.plan = plan
        self.layout = layout
        counts, hashes, sources, blocks, size = _offsets(plan, layout)
        self._map = mmap.mmap(descriptor, size)
        view = memoryview(self._map)
        self.counts = view[counts : counts + 4 * plan.count_cells].cast("I")
        self.hashes = view[hashes : hashes + 8 * plan.source_cells].cast("Q")
        self.sources = view[sources : sources + 4 * plan.source_cells].cast("I")
        self._blocks = [view[blocks + PAGE * _pages(8 * layout.size) * i :] for i in range(plan.workers)]
        # One worker, one block of its own pages: two workers never write to the same cache line.
        self.blocks = [block[: 8 * layout.size].cast("Q") for block in self._blocks]

    @classmethod
    def create(cls, plan: LimitPlan, layout: Layout) -> Table:
        """A new table, all zero. Raises OSError."""
        return cls(memory.shared("relay-table", _offsets(plan, layout)[-1]), plan, layout)

    def limits(self, column: int, plan: LimitPlan | None = None) -> Limits:
        """The limits as the worker with this number sees them. `plan`: other limits than at the start, same sizes."""
        return Limits(plan or self.plan, column, self.counts, self.hashes, self.sources, Fence())


class Fence:
    """A full memory barrier: what was written before is visible to other processors before anything later is read.

    Python has none of its own, but a lock has: giving one back is a release, taking it an acquire operation on the same
    word, and later loads cannot pass an acquire that itself cannot pass the release before it (C11 atomics; on x86
    either is a locked instruction anyway).
    """

    __slots__ = ("_acquire", "_release")

    def __init__(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._acquire = lock.acquire
        self._release = lock.release

    def __call__(self) -> None:
        self._release()
        self._acquire()


def _offsets(plan: LimitPlan, layout: Layout) -> tuple[int, int, int, int, int]:
    """Byte offsets of counts, hashes, sources and blocks, and the whole size."""
    hashes = PAGE * _pages(4 * plan.count_cells)
    sources = hashes + PAGE * _pages(8 * plan.source_cells)
    blocks = sources + PAGE * _pages(4 * plan.source_cells)
    return 0, hashes, sources, blocks, blocks + PAGE * _pages(8 * layout.size) * plan.workers


def _pages(size: int) -> int:
    return -(-size // PAGE)
