"""The limits under schedules that Hypothesis chooses, for programs too large to try every interleaving of."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import limit_table, limits
from relay.core.limit_table import LimitPlan
from relay.core.limits import NO_CUSTOMER, Lease, Limits, Refusal
from tests.core.promises import Violation, check_limits, reached_limits, table_of
from tests.core.stepping import Acquire, Operation, Process, Release, System

ACQUIRE, RELEASE = Acquire(), Release()
ONE_PLACE = LimitPlan(workers=2, instance=1, capacity=9, listeners=(0,))


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of two slots instead of 16, so that some are full."""
    monkeypatch.setattr(limit_table, "WAYS", 2)


# A schedule has fewer accesses than SPINS: whoever waits in it does not come to give up.
BURSTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), max_size=32)


@st.composite
def systems(draw: st.DrawFn) -> tuple[System, list[list[Operation]]]:
    workers = draw(st.integers(2, 4))
    listeners = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
    made = LimitPlan(
        workers=workers,
        instance=draw(st.integers(1, 5)),
        capacity=draw(st.integers(1, 3)),
        listeners=listeners,
        per_source=(per_source := draw(st.integers(0, 2))),
        source_buckets=draw(st.sampled_from([1, 2])) if per_source else 0,
        customers=2,
    )
    customer_limits = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    acquires = st.builds(Acquire, st.integers(0, len(listeners) - 1), st.integers(1, 5), st.integers(NO_CUSTOMER, 1))
    operations = st.lists(st.one_of(acquires, acquires, st.just(RELEASE)), min_size=1, max_size=5)
    return System(made, customer_limits=customer_limits), [list(draw(operations)) for _ in range(workers)]


def play(system: System, programs: list[list[Operation]], schedule: list[tuple[int, int]]) -> list[Process]:
    """Run by the schedule, then in turn until all have ended; check the promises on the way."""
    memory = [0] * system.size
    processes = [Process(system, column, list(program), memory) for column, program in enumerate(programs)]
    reached: list[set[Refusal]] = [set() for _ in processes]

    def run(process: Process, accesses: int) -> None:
        ended = process.run(accesses)
        check_limits(system, [other.owned for other in processes])
        if ended is not None:
            if isinstance(ended.result, Refusal) and ended.result not in reached[process.column]:
                raise Violation(f"worker {process.column}: {ended}, but there was room all the time")
            reached[process.column].clear()
        for other, seen in zip(processes, reached, strict=True):
            if other.program and isinstance(other.program[0], Acquire):
                seen.update(reached_limits(system, [one.held for one in processes], other.column, other.program[0]))

    for number, accesses in schedule:
        process = processes[number % len(processes)]
        if process.program:
            run(process, accesses)
    turns = 0
    while left := [process for process in processes if process.program]:
        for process in left:
            run(process, 1)
        turns += 1
        assert turns < 10_000, "nobody gets anywhere"
    return processes


@pytest.mark.slow
@pytest.mark.timeout(180)  # seconds; some five on a machine that has nothing else to do
@settings(max_examples=300, deadline=None)
@given(made=systems(), schedule=BURSTS)
@pytest.mark.usefixtures("two_ways")
def test_promises_hold_under_any_schedule(
    made: tuple[System, list[list[Operation]]], schedule: list[tuple[int, int]]
) -> None:
    system, programs = made
    processes = play(system, programs, schedule)
    memory = processes[0].memory
    cells, workers, slots = system.plan.count_cells, system.plan.workers, system.plan.source_cells
    held = [process.held for process in processes]
    assert all(number % 2 == 0 for number in memory[:workers])
    assert (tuple(memory[workers:cells]), tuple(memory[cells + slots :])) == table_of(system, held)
    # If there is room in the end, an acquire by anybody succeeds; if there is none, it says which limit is reached.
    for column, customer in product(range(workers), range(NO_CUSTOMER, 2)):
        wanted = Acquire(source=7, customer=customer)
        last = Process(system, column, [wanted], memory)
        last.held = held[column]
        expected = set(reached_limits(system, held, column, wanted))
        ended = last.run(10_000)
        assert ended is not None
        assert ended.result in expected if expected else isinstance(ended.result, Lease)
        last.program = [RELEASE]
        if isinstance(ended.result, Lease):
            last.held = last.held[-1:]
            last.run(10_000)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_worker_that_is_stopped_for_good_delays_nobody_for_long(stopped: int) -> None:
    """Wherever it was stopped, the other's acquire ends: admitted, or refused after a bounded number of looks."""
    outcomes: set[object] = set()
    for accesses in range(1, 12):
        memory = [0] * System(ONE_PLACE).size
        Process(System(ONE_PLACE), stopped, [ACQUIRE], memory).run(accesses)
        other = Process(System(ONE_PLACE), 1 - stopped, [ACQUIRE], memory)
        ended = other.run(6 * limits.SPINS)
        assert ended is not None, f"stopped after {accesses} accesses"
        outcomes.add(type(ended.result))
    assert outcomes == {Lease, Refusal}


class TakesTooManyForFull(Limits):
    """Refuses whenever the sum is too high, whatever the others are doing."""

    def _decide(self, listener: int, source: int, customer: int = NO_CUSTOMER) -> tuple[Refusal | None, bool]:
        return Refusal.INSTANCE, True


def test_a_refusal_without_need_is_found() -> None:
    with pytest.raises(Violation, match="there was room all the time"):
        play(System(ONE_PLACE, TakesTooManyForFull), [[ACQUIRE], [ACQUIRE]], [(0, 2), (1, 2)])
