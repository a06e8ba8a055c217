"""The shared table: the counts of the limits and the counters of every worker, in one anonymous file.

The supervisor makes the file (`memory`) and passes its descriptor to each worker, which maps it. Its size is fixed, and
it goes away with the last process that has it open. `core.limits` and `core.counters` define what is in which cell.
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
    """The shared table, mapped; another process maps it by `descriptor`."""

    def __init__(self, descriptor: int, plan: LimitPlan, layout: Layout) -> None:
        self.descriptor = descriptor
        self.plan = plan
        self.layout = layout
        counts, hashes, sources, blocks, size = _offsets(plan, layout)
        self._map = mmap.mmap(descriptor, size)
        view = memoryview(self._map)
        self._blocks_at, self._block_bytes = blocks, PAGE * _pages(8 * layout.size)
        self.counts = view[counts : counts + 4 * plan.count_cells].cast("I")
        self.hashes = view[hashes : hashes + 8 * plan.source_cells].cast("Q")
        self.sources = view[sources : sources + 4 * plan.source_cells].cast("I")
        # Each worker's block has its own pages: two workers never write to the same cache line.
        starts = [blocks + self._block_bytes * index for index in range(plan.workers)]
        self.blocks = [view[start : start + 8 * layout.size].cast("Q") for start in starts]

    @classmethod
    def create(cls, plan: LimitPlan, layout: Layout) -> Table:
        """Make a new table, all cells zero. Raises OSError."""
        return cls(memory.shared("relay-table", _offsets(plan, layout)[-1]), plan, layout)

    def clear_block(self, index: int) -> None:
        """Set all cells of a worker's block to zero, by giving its pages back. For the supervisor, after its end."""
        # MADV_REMOVE, madvise(2): the cells between those in use may have been written by a compromised worker, and
        # a walk over all of them would take memory for each page.
        self._map.madvise(mmap.MADV_REMOVE, self._blocks_at + self._block_bytes * index, self._block_bytes)

    def limits(self, column: int, plan: LimitPlan | None = None) -> Limits:
        """The limits of the worker with this column. `plan`: other limits than at the start, of the same sizes."""
        return Limits(plan or self.plan, column, self.counts, self.hashes, self.sources, Fence())


class Fence:
    """A full memory barrier: earlier writes are visible to other processors before any later read.

    Python has no barrier, but a lock contains one: unlocking is a release and locking an acquire operation on the same
    word. Later loads cannot pass the acquire, which cannot pass the release before it (C11 atomics; on x86 both are
    locked instructions anyway).
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
    """The byte offsets of counts, hashes, sources and blocks, and the total size."""
    hashes = PAGE * _pages(4 * plan.count_cells)
    sources = hashes + PAGE * _pages(8 * plan.source_cells)
    blocks = sources + PAGE * _pages(4 * plan.source_cells)
    return 0, hashes, sources, blocks, blocks + PAGE * _pages(8 * layout.size) * plan.workers


def _pages(size: int) -> int:
    return -(-size // PAGE)
