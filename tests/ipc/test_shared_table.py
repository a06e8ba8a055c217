"""The shared table: two processes see each other's writes, and no two things stand in one place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import customer_counters
from relay.core.counters import ROUTE_SLOTS, UPSTREAM_SLOTS, Layout
from relay.core.customer_counters import CustomerLayout
from relay.core.customers import SLOTS
from relay.core.limit_table import LimitPlan, clear_column, clear_customers
from relay.core.limits import Lease, Refusal
from relay.ipc.shared_table import PAGE, Fence, Table
from tests.ipc.tables import LAYOUT, PLAN
from tests.support.programs import ROOT


class Peer:
    """The other process."""

    def __init__(self, table: Table) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ipc.table_peer", str(table.descriptor)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[table.descriptor],
        )

    def __call__(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def test_two_processes_see_each_others_writes() -> None:
    table = Table.create(PLAN, LAYOUT)
    peer = Peer(table)
    with peer.process:
        table.blocks[0][7] = 1 << 63
        assert peer("read 0 7") == str(1 << 63)
        assert peer("write 1 0 42") == "written"
        assert table.blocks[1][0] == 42
        limits = table.limits(0)
        assert peer("acquire 9") == "admitted"
        first, second = limits.acquire(0, 9), limits.acquire(0, 9)
        assert isinstance(first, Lease)
        assert second is Refusal.SOURCE, "the limit is for both together"
        assert peer("acquire 8") == "admitted"
        assert peer("acquire 7") == Refusal.INSTANCE.value
        first.release()
        assert peer("acquire 7") == "admitted"
        peer.process.kill()
    # What it held and counted outlives it, until it is given back.
    assert table.blocks[1][0] == 42
    assert limits.acquire(0, 1) is Refusal.INSTANCE
    clear_column(PLAN, 1, table.counts, table.sources)
    assert isinstance(limits.acquire(0, 1), Lease)
    os.close(table.descriptor)


PLANS = st.builds(
    LimitPlan,
    workers=st.integers(1, 5),
    instance=st.just(1),
    capacity=st.just(1),
    listeners=st.lists(st.just(1), min_size=1, max_size=600).map(tuple),
    per_source=st.just(1),
    source_buckets=st.sampled_from([64, 128]),
    customers=st.sampled_from([0, 1, 300]),
)


@settings(deadline=None, max_examples=40)
@given(PLANS, st.builds(Layout, st.integers(1, 40), st.integers(1, 40), st.integers(1, 30)), st.integers(1, 20))
def test_nothing_overlaps(plan: LimitPlan, layout: Layout, refusals: int) -> None:
    table = Table.create(plan, layout, refusals)
    of_workers = [*table.blocks, *table.customer_blocks]
    regions = [table.counts, table.hashes, table.sources, table.customers, *of_workers]
    sizes = [plan.count_cells, plan.source_cells, plan.source_cells, plan.customer_cells]
    sizes += [layout.size] * plan.workers + [CustomerLayout(plan.customers, refusals).size] * plan.workers
    assert [len(region) for region in regions] == sizes
    assert not any(any(region) for region in regions), "all zero at first"
    for number, region in enumerate(regions, 1):
        for cell in range(len(region)):
            region[cell] = number
    for number, region in enumerate(regions, 1):
        assert set(region) == ({number} if len(region) else set())
    # The same from another mapping; and no page has the counters of two workers.
    again = Table(table.descriptor, plan, layout, refusals)
    assert [list(block) for block in [*again.blocks, *again.customer_blocks]] == [list(block) for block in of_workers]
    assert list(again.customers) == list(table.customers)
    contents = os.pread(table.descriptor, os.fstat(table.descriptor).st_size, 0)
    blocks = set(range(len(regions) - len(of_workers) + 1, len(regions) + 1))
    for start in range(0, len(contents), PAGE):
        assert len(blocks.intersection(memoryview(contents[start : start + PAGE]).cast("Q"))) <= 1
    os.close(table.descriptor)


def test_customers_take_memory_as_they_appear() -> None:
    plan = LimitPlan(workers=4, instance=1, capacity=1, listeners=(0,), customers=SLOTS)
    table = Table.create(plan, LAYOUT, refusals=12)

    def taken() -> int:
        return os.fstat(table.descriptor).st_blocks * 512

    assert taken() == 0, "not even looked at"
    used = range(5000)
    layout = table.customer_layout
    seen = memoryview(bytearray(8 * layout.size)).cast("Q")
    for block in table.customer_blocks:
        for slot in used:
            block[layout.totals(slot) + customer_counters.ACCEPTED] += 1
        customer_counters.look(layout, block, seen, used, most=10)
    limits = table.limits(3, customer_limits=[0] * len(used))
    for slot in used:
        limits.acquire_for(slot, 0)
    clear_customers(plan, 3, table.customers, len(used))
    assert taken() < 1 << 20, "a megabyte for 5,000 customers that had a connection in each of four workers"
    os.close(table.descriptor)


def test_a_fence_never_waits() -> None:
    """It takes a lock of its own: even two threads with one fence each, or one that is used again and again."""
    fences = [Fence(), Fence()]

    def use(fence: Fence) -> None:
        for _ in range(10_000):
            fence()

    threads = [threading.Thread(target=use, args=[fence]) for fence in fences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_block_is_cleared_by_giving_its_pages_back() -> None:
    """Also the cells that nobody uses; the other processes see zeros, and the neighbours keep theirs."""
    layout = Layout(4, UPSTREAM_SLOTS, 20, 2, ROUTE_SLOTS)
    table = Table.create(LimitPlan(3, 10, 10, (0,)), layout)
    before = os.fstat(table.descriptor).st_blocks
    for block in table.blocks:
        for cell in (0, layout.route(7), layout.size - 1):
            block[cell] = 1 << 63
    peer = Table(table.descriptor, table.plan, layout)
    full = os.fstat(table.descriptor).st_blocks
    assert 0 < full - before <= 3 * 3 * 8, "a page for each cell, of 512-byte blocks"
    table.clear_block(1)
    assert os.fstat(table.descriptor).st_blocks < full
    assert not any(peer.blocks[1])
    for index in (0, 2):
        assert peer.blocks[index][0] == peer.blocks[index][layout.size - 1] == 1 << 63
    table.blocks[1][5] = 4
    assert peer.blocks[1][5] == 4
