"""The limits as one worker after the other uses them, against a plain model; sources, slots and sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import SupportsIndex, overload

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import limits
from relay.core.limit_table import WAYS, LimitPlan, clear_column, clear_customers, source_buckets, total_held
from relay.core.limits import NO_CUSTOMER, Lease, Limits, Refusal


class Shared:
    """A table in plain lists and the workers over it."""

    def __init__(self, plan: LimitPlan, customer_limits: tuple[int, ...] = ()) -> None:
        self.plan = plan
        self.customer_limits = customer_limits
        self.customers = [0] * plan.customer_cells
        self.counts = [0] * plan.count_cells
        self.hashes = [0] * plan.source_cells
        self.sources = [0] * plan.source_cells
        self.workers = [self.worker(column) for column in range(plan.workers)]

    def worker(self, column: int) -> Limits:
        return Limits(
            self.plan,
            column,
            self.counts,
            self.hashes,
            self.sources,
            lambda: None,
            self.customers,
            self.customer_limits,
        )


def admitted(result: Lease | Refusal) -> Lease:
    assert isinstance(result, Lease)
    return result


PLANS = st.builds(
    LimitPlan,
    workers=st.integers(1, 4),
    instance=st.integers(1, 8),
    capacity=st.integers(1, 5),
    listeners=st.lists(st.integers(0, 4), min_size=2, max_size=2).map(tuple),
    per_source=st.integers(1, 3),
    source_buckets=st.just(64),
    customers=st.just(2),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("acquire"), st.integers(0, 3), st.integers(0, 1), st.integers(1, 5), st.integers(NO_CUSTOMER, 1)
        ),
        st.tuples(st.just("release"), st.integers(0, 99), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("clear"), st.integers(0, 3), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(plan=PLANS, of_customers=st.tuples(st.integers(0, 3), st.integers(0, 3)), steps=STEPS)
def test_one_after_the_other_it_is_simple_counting(
    plan: LimitPlan, of_customers: tuple[int, int], steps: list[tuple[str, int, int, int, int]]
) -> None:
    shared = Shared(plan, of_customers)
    held: list[tuple[int, int, int, int, Lease]] = []
    for kind, number, listener, source, customer in steps:
        column = number % plan.workers
        if kind == "acquire":
            worker, limit = shared.workers[column], 0
            if customer == NO_CUSTOMER:
                result = worker.acquire(listener, source)
            else:
                result, limit = worker.acquire_for(customer, listener, source), of_customers[customer]
            reached = {
                Refusal.CAPACITY: sum(c == column for c, _, _, _, _ in held) >= plan.capacity,
                Refusal.CUSTOMER: 0 < limit <= sum(of == customer for _, _, _, of, _ in held),
                Refusal.INSTANCE: len(held) >= plan.instance,
                Refusal.LISTENER: 0 < plan.listeners[listener] <= sum(l_ == listener for _, l_, _, _, _ in held),
                Refusal.SOURCE: sum(s == source for _, _, s, _, _ in held) >= plan.per_source,
            }
            # Of several limits that are reached, the first in this order is named.
            assert (result if isinstance(result, Refusal) else None) == next((r for r in reached if reached[r]), None)
            if isinstance(result, Lease):
                held.append((column, listener, source, customer, result))
        elif kind == "release" and held:
            held.pop(number % len(held))[-1].release()
        elif kind == "clear":
            clear_customers(plan, column, shared.customers, plan.customers)
            clear_column(plan, column, shared.counts, shared.sources)
            held = [one for one in held if one[0] != column]
            shared.workers[column] = shared.worker(column)
        assert total_held(plan, shared.counts) == len(held)
        assert [worker.held() for worker in shared.workers] == [
            sum(c == number for c, _, _, _, _ in held) for number in range(plan.workers)
        ]
        of_columns = [(slot, number) for slot in (0, 1) for number in range(plan.workers)]
        assert shared.customers == [sum((of, c) == row for c, _, _, of, _ in held) for row in of_columns]


def test_a_lease_is_given_back_once() -> None:
    shared = Shared(LimitPlan(1, instance=2, capacity=2, listeners=(2,), per_source=2, source_buckets=64))
    worker = shared.workers[0]
    first, second = admitted(worker.acquire(0, 1)), admitted(worker.acquire(0, 1))
    first.release()
    first.release()
    assert worker.held() == 1
    assert sum(shared.sources) == 1
    second.release()
    assert not any(shared.counts[1:])
    assert not any(shared.sources)


def test_the_column_must_be_one_of_the_plans() -> None:
    plan = LimitPlan(2, 1, 1, (0,))
    for column in (-1, 2):
        with pytest.raises(ValueError, match=f"column {column} of 2"):
            Limits(plan, column, [], [], [], lambda: None)


def test_a_limit_that_comes_later_counts_those_who_were_there_before() -> None:
    before = LimitPlan(1, instance=9, capacity=9, listeners=(0, 1))
    shared = Shared(before)
    (worker,) = shared.workers
    leases = [worker.acquire(0) for _ in range(3)]
    assert all(isinstance(lease, Lease) for lease in leases)
    after = replace(before, listeners=(3, 1))
    later = Limits(after, 0, shared.counts, shared.hashes, shared.sources, lambda: None)
    assert later.acquire(0) is Refusal.LISTENER
    assert isinstance(leases[0], Lease)
    leases[0].release()
    assert isinstance(later.acquire(0), Lease)


# --- customers -------------------------------------------------------------------------------------------------------


def test_connections_without_a_customer_touch_no_customers_row() -> None:
    shared = Shared(LimitPlan(2, 9, 9, (0,), customers=2), (1, 1))
    shared.customers = []  # any access would fail
    for column in (0, 1):
        admitted(shared.worker(column).acquire(0)).release()


def test_a_lowered_limit_cuts_nobody_and_counts_those_who_are_there() -> None:
    shared = Shared(LimitPlan(2, 9, 9, (0,), customers=1), (0,))
    leases = [admitted(worker.acquire_for(0, 0)) for worker in shared.workers]
    shared.customer_limits = (1,)
    later = shared.worker(0)
    assert later.acquire_for(0, 0) is Refusal.CUSTOMER
    leases[0].release()
    leases[0].release()
    assert later.acquire_for(0, 0) is Refusal.CUSTOMER, "one is still there: released once, whatever is called"
    leases[1].release()
    admitted(later.acquire_for(0, 0))


def test_clearing_a_column_reads_the_rows_of_used_slots_alone() -> None:
    plan = LimitPlan(2, 9, 9, (0,), customers=100)
    customers = Counted([1] * plan.customer_cells)
    clear_customers(plan, 1, customers, used=3)
    assert customers == [1, 0] * 3 + [1, 1] * 97
    assert customers.reads == 3


# --- sources ---------------------------------------------------------------------------------------------------------


def by_source(buckets: int = 1, workers: int = 1, per_source: int = 2) -> Shared:
    plan = LimitPlan(workers, 10_000, 10_000, (0,), per_source, buckets)
    return Shared(plan)


@settings(deadline=None)
@given(st.lists(st.integers(1, (1 << 64) - 1), unique=True, min_size=1, max_size=WAYS))
def test_sources_do_not_count_against_one_another(sources: list[int]) -> None:
    shared = by_source(workers=2)
    for source in sources:
        admitted(shared.workers[0].acquire(0, source))
        admitted(shared.workers[1].acquire(0, source))
    for source in sources:
        assert shared.workers[0].acquire(0, source) is Refusal.SOURCE
        assert shared.workers[1].acquire(0, source) is Refusal.SOURCE


def test_a_full_bucket_refuses_new_sources_and_not_those_that_it_has() -> None:
    worker = by_source().workers[0]
    leases = [admitted(worker.acquire(0, source)) for source in range(1, WAYS + 1)]
    assert worker.acquire(0, WAYS + 1) is Refusal.SOURCE
    admitted(worker.acquire(0, WAYS))
    leases[3].release()
    admitted(worker.acquire(0, WAYS + 1))


def test_a_refused_source_leaves_nothing_behind() -> None:
    shared = by_source()
    worker = shared.workers[0]
    for source in range(1, WAYS + 1):
        admitted(worker.acquire(0, source))
    before = list(shared.counts[1:]), list(shared.hashes), list(shared.sources)
    assert worker.acquire(0, WAYS + 1) is Refusal.SOURCE
    assert (shared.counts[1:], shared.hashes, shared.sources) == before
    assert shared.counts[0] % 2 == 0, "it no longer counts as deciding"


def test_a_flood_of_sources_reuses_the_slots() -> None:
    shared = by_source(buckets=64)
    worker = shared.workers[0]
    for source in range(1, 20_000):
        admitted(worker.acquire(0, source * 0x9E3779B97F4A7C15 & (1 << 64) - 1)).release()
    assert len(shared.hashes) == len(shared.sources) == 64 * WAYS
    assert not any(shared.sources)


def test_a_source_that_comes_back_has_one_slot() -> None:
    """A slot that fell free is not taken for a source that has another one already."""
    shared = by_source()
    worker = shared.workers[0]
    other = admitted(worker.acquire(0, 1))
    admitted(worker.acquire(0, 2))
    other.release()
    admitted(worker.acquire(0, 2))
    assert Counter(shared.hashes)[2] == 1
    assert worker.acquire(0, 2) is Refusal.SOURCE


@settings(deadline=None)
@given(st.integers(0, 1 << 20))
def test_buckets_are_a_power_of_two_and_mostly_empty(connections: int) -> None:
    buckets = source_buckets(connections)
    assert buckets.bit_count() == 1
    assert connections <= 2 * buckets
    assert buckets == 64 or connections > buckets, "not twice what is needed"


# --- rivals that stand still -----------------------------------------------------------------------------------------


class Counted(list[int]):
    """Cells that count how often they were read."""

    reads = 0

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> int | list[int]:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("column", "stopped"), [(1, 0), (0, 1), (7, 0), (3, 5)])
def test_a_worker_stopped_while_it_decides_costs_a_bounded_number_of_looks(column: int, stopped: int) -> None:
    plan = LimitPlan(workers=8, instance=1, capacity=9, listeners=(0,))
    counts = Counted([0] * plan.count_cells)
    counts[stopped] = 1  # odd: deciding
    counts[plan.workers + stopped] = 1  # announced
    worker = Limits(plan, column, counts, [], [], lambda: None)
    assert worker.acquire(0) is Refusal.INSTANCE
    one_look = 4 * plan.workers  # the rivals and the sums, each twice
    assert counts.reads <= (limits.SPINS + 10) * one_look
    assert counts[plan.workers + column] == 0
    assert counts[column] % 2 == 0


def test_sequence_numbers_wrap_around() -> None:
    plan = LimitPlan(workers=2, instance=1, capacity=9, listeners=(0,))
    counts = memoryview(bytearray(4 * plan.count_cells)).cast("I")
    counts[0] = limits.MASK - 1
    worker = Limits(plan, 0, counts, [], [], lambda: None)
    admitted(worker.acquire(0)).release()
    assert counts[0] == 0
    admitted(worker.acquire(0))
