"""The shared table: the counts of the limits and the counters of every worker, in one anonymous file.

The supervisor makes the file (`memory`) and passes its descriptor to each worker, which maps it. Its size is fixed, and
it goes away with the last process that has it open. `core.limits` and `core.counters` define what is in which cell.
"""

from __future__ import annotations

import mmap
import threading

from relay.core.counters import Layout
from relay.core.customer_counters import CustomerLayout
from relay.core.limit_table import LimitPlan, Row
from relay.core.limits import NO_CELLS, Limits
from relay.ipc import memory

PAGE = 4096


class Table:
    """The shared table, mapped; another process maps it by `descriptor`."""

    def __init__(self, descriptor: int, plan: LimitPlan, layout: Layout, refusals: int = 0) -> None:
        """`refusals`: how many outcomes refuse a connection, the reasons of the customers' counters."""
        self.descriptor = descriptor
        self.plan = plan
        self.layout = layout
        self.customer_layout = CustomerLayout(plan.customers, refusals)
        counts, hashes, sources, blocks, customers, size = _offsets(plan, layout, self.customer_layout)
        self._map = mmap.mmap(descriptor, size)
        view = memoryview(self._map)
        self._blocks_at, self._block_bytes = blocks, PAGE * _pages(8 * layout.size)
        self.counts = view[counts : counts + 4 * plan.count_cells].cast("I")
        self.hashes = view[hashes : hashes + 8 * plan.source_cells].cast("Q")
        self.sources = view[sources : sources + 4 * plan.source_cells].cast("I")
        # Each worker's block has its own pages: two workers never write to the same cache line.
        starts = [blocks + self._block_bytes * index for index in range(plan.workers)]
        self.blocks = [view[start : start + 8 * layout.size].cast("Q") for start in starts]
        # The customers' regions are at the end, and sparse: the kernel allocates a page when it is first touched.
        self.customers = view[customers : customers + 4 * plan.customer_cells].cast("I")
        first = customers + PAGE * _pages(4 * plan.customer_cells)
        per_worker = PAGE * _pages(8 * self.customer_layout.size)
        starts = [first + per_worker * worker for worker in range(plan.workers)]
        self.customer_blocks = [view[start : start + 8 * self.customer_layout.size].cast("Q") for start in starts]

    @classmethod
    def create(cls, plan: LimitPlan, layout: Layout, refusals: int = 0) -> Table:
        """Make a new table, all cells zero. Raises OSError."""
        size = _offsets(plan, layout, CustomerLayout(plan.customers, refusals))[-1]
        return cls(memory.shared("relay-table", size), plan, layout, refusals)

    def clear_block(self, index: int) -> None:
        """Set all cells of a worker's block to zero, by giving its pages back. For the supervisor, after its end."""
        # MADV_REMOVE, madvise(2): the cells between those in use may have been written by a compromised worker, and
        # a walk over all of them would take memory for each page.
        self._map.madvise(mmap.MADV_REMOVE, self._blocks_at + self._block_bytes * index, self._block_bytes)

    def limits(self, column: int, plan: LimitPlan | None = None, customer_limits: Row = NO_CELLS) -> Limits:
        """The limits of the worker with this column. `plan`: other limits than at the start, of the same sizes.

        `customer_limits` are the customers' by slot.
        """
        return Limits(
            plan or self.plan,
            column,
            self.counts,
            self.hashes,
            self.sources,
            Fence(),
            self.customers,
            customer_limits,
        )


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


def _offsets(plan: LimitPlan, layout: Layout, customer_layout: CustomerLayout) -> tuple[int, int, int, int, int, int]:
    """The byte offsets of counts, hashes, sources, blocks and customers' regions, and the total size."""
    hashes = PAGE * _pages(4 * plan.count_cells)
    sources = hashes + PAGE * _pages(8 * plan.source_cells)
    blocks = sources + PAGE * _pages(4 * plan.source_cells)
    customers = blocks + PAGE * _pages(8 * layout.size) * plan.workers
    size = customers + PAGE * _pages(4 * plan.customer_cells)
    size += PAGE * _pages(8 * customer_layout.size) * plan.workers
    return 0, hashes, sources, blocks, customers, size


def _pages(size: int) -> int:
    return -(-size // PAGE)
