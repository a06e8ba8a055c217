"""The limits under every interleaving of small programs, a worker's death at any point and store buffers included.

The real code runs, one memory access at a time (`stepping`); what is checked in each state is said in `exploring`. At
the end, broken variants of the code show that each of these checks can fail.
"""

from __future__ import annotations

import pytest

from relay.core import limit_table, limits
from relay.core.limit_table import LimitPlan
from relay.core.limits import NO_CUSTOMER, CustomerLease, Lease, Limits, Refusal
from tests.core.automaton import Automaton, Local
from tests.core.exploring import Explorer, explore
from tests.core.promises import Violation
from tests.core.stepping import WRITE, Acquire, Operation, Release, System

ACQUIRE, RELEASE = Acquire(), Release()
OTHER_LISTENER = Acquire(listener=1)


def from_source(number: int) -> Acquire:
    return Acquire(source=number)


def of_customer(number: int, source: int = 0) -> Acquire:
    return Acquire(customer=number, source=source)


def plan(
    workers: int,
    instance: int,
    *,
    listeners: tuple[int, ...] = (0,),
    capacity: int = 9,
    per_source: int = 0,
    buckets: int = 1,
    customers: int = 0,
) -> LimitPlan:
    return LimitPlan(workers, instance, capacity, listeners, per_source, buckets if per_source else 0, True, customers)


def with_customers(workers: int, instance: int, limits_: tuple[int, ...], **more: int) -> System:
    return System(plan(workers, instance, customers=len(limits_), **more), customer_limits=limits_)  # type: ignore[arg-type]


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of two slots instead of 16: fewer states, and soon full."""
    monkeypatch.setattr(limit_table, "WAYS", 2)


# --- every interleaving ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(180)  # seconds; three workers come to some 200 000 states, four seconds' work on an idle machine
@pytest.mark.parametrize(
    ("workers", "tries", "room"), [(2, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 3), (2, 3, 2), (3, 1, 1), (3, 1, 2)]
)
def test_as_many_are_admitted_as_there_is_room_for(workers: int, tries: int, room: int) -> None:
    explored = explore(System(plan(workers, room)), *[(ACQUIRE,) * tries] * workers)
    assert explored.admitted == {min(workers * tries, room)}
    assert explored.stuck == 0


@pytest.mark.parametrize("room", [1, 2])
def test_what_is_given_back_can_be_had_again(room: int) -> None:
    program = (ACQUIRE, RELEASE, ACQUIRE)
    explored = explore(System(plan(2, room)), program, program)
    assert explored.admitted <= set(range(1, room + 1))
    assert explored.stuck == 0


@pytest.mark.parametrize("listeners", [(1, 0), (1, 2)])
def test_each_listener_has_its_own_limit(listeners: tuple[int, ...]) -> None:
    system = System(plan(2, 3, listeners=listeners))
    explored = explore(system, (ACQUIRE, OTHER_LISTENER, RELEASE), (OTHER_LISTENER, ACQUIRE, RELEASE))
    assert explored.stuck == 0


@pytest.mark.usefixtures("two_ways")
def test_each_source_has_its_own_limit() -> None:
    explored = explore(
        System(plan(2, 3, per_source=1)),
        (from_source(1), RELEASE, from_source(2), from_source(1)),
        (from_source(2), from_source(1)),
    )
    assert explored.admitted == {2}
    assert explored.stuck == 0


@pytest.mark.usefixtures("two_ways")
def test_a_full_bucket_refuses_the_source() -> None:
    sources = [from_source(n) for n in (1, 2, 3)]
    explored = explore(System(plan(2, 9, per_source=1)), tuple(sources), (from_source(4),))
    assert explored.admitted == {3}  # two of the first worker's three, and the other worker's one


@pytest.mark.parametrize(("room", "limit"), [(2, 1), (3, 2), (1, 1), (3, 0)])
def test_each_customer_has_its_own_limit(room: int, limit: int) -> None:
    explored = explore(with_customers(2, room, (limit,)), *[(of_customer(0), of_customer(0))] * 2)
    assert explored.admitted == {min(room, limit or room)}
    assert explored.stuck == 0


def test_customers_do_not_count_against_one_another_nor_against_those_of_none() -> None:
    explored = explore(with_customers(2, 9, (1, 1)), (of_customer(0), ACQUIRE, of_customer(1)), (of_customer(1),))
    assert explored.admitted == {3}  # of the two that want customer 1's place, one
    assert explored.stuck == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_three_workers_and_one_place_of_a_customer() -> None:
    explored = explore(with_customers(3, 9, (1,)), *[(of_customer(0),)] * 3)
    assert explored.admitted == {1}
    assert explored.stuck == 0


@pytest.mark.usefixtures("two_ways")
def test_a_customers_limit_beside_that_of_a_source() -> None:
    explored = explore(
        with_customers(2, 9, (2,), per_source=1),
        (of_customer(0, 1), RELEASE, of_customer(0, 2)),
        (of_customer(0, 1), of_customer(0, 2)),
    )
    assert explored.admitted <= {1, 2}
    assert explored.stuck == 0


@pytest.mark.parametrize("limit", [1, 2])
def test_a_customer_that_is_known_only_after_the_first_admission(limit: int) -> None:
    """Behind a PROXY header: admitted as nobody's, released, and admitted again as the customer's."""
    two_steps: tuple[Operation, ...] = (ACQUIRE, RELEASE, of_customer(0))
    explored = explore(with_customers(2, 2, (limit,)), two_steps, two_steps)
    assert explored.admitted == {limit}
    assert explored.stuck == 0


@pytest.mark.parametrize("dies", [0, 1])
def test_a_dead_workers_customers_are_given_back(dies: int) -> None:
    programs: list[tuple[Operation, ...]] = [(of_customer(0),), (of_customer(0),)]
    programs[dies] = (of_customer(0), RELEASE, of_customer(0))
    system = with_customers(2, 9, (1,))
    explored = Explorer(system, programs, kill=dies, after=(of_customer(0),)).run()
    assert explored.stuck == 0
    assert explored.admitted == {1}, "whatever the dead worker held, its successor or the other can have it"


@pytest.mark.parametrize("dies", [0, 1])
def test_a_worker_may_die_at_any_point(dies: int) -> None:
    """Its column is cleared while the other goes on, and its successor begins there at once."""
    programs: list[tuple[Operation, ...]] = [(ACQUIRE, ACQUIRE), (ACQUIRE, ACQUIRE)]
    programs[dies] = (ACQUIRE, RELEASE, ACQUIRE)
    explored = Explorer(System(plan(2, 1)), programs, kill=dies, after=(ACQUIRE,)).run()
    assert explored.stuck == 0, "nobody is hung by what the dead worker left"
    assert explored.admitted == {1}, "whatever the dead worker held, its successor or the other can have it"


@pytest.mark.usefixtures("two_ways")
def test_a_dead_workers_sources_are_given_back() -> None:
    programs: list[tuple[Operation, ...]] = [(from_source(1), RELEASE, from_source(2)), (from_source(2),)]
    explored = Explorer(System(plan(2, 9, per_source=1)), programs, kill=0, after=(from_source(1),)).run()
    assert explored.stuck == 0
    assert explored.admitted == {1, 2}  # 1: the other was refused while source 2 was held, and then its holder died


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_giving_up_early_costs_a_refusal_and_never_the_limit(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(limits, "SPINS", 1)
    programs: list[tuple[Operation, ...]] = [(ACQUIRE,)] * workers
    explored = Explorer(System(plan(workers, 1)), programs, check_refusals=False).run()
    assert explored.admitted == {0, 1}
    assert explored.stuck == 0


# --- store buffers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "other", "room"),
    [
        ((ACQUIRE,), (ACQUIRE,), 1),
        ((ACQUIRE, ACQUIRE), (ACQUIRE, ACQUIRE), 2),
        ((ACQUIRE, RELEASE, ACQUIRE), (ACQUIRE,), 1),
    ],
)
def test_the_fence_makes_up_for_store_buffers(
    program: tuple[Operation, ...], other: tuple[Operation, ...], room: int
) -> None:
    explored = Explorer(System(plan(2, room)), [program, other], buffered=True).run()
    assert explored.admitted == {room}
    assert explored.stuck == 0


@pytest.mark.parametrize("program", [(of_customer(0),), (of_customer(0), RELEASE, of_customer(0))])
def test_the_fence_makes_up_for_store_buffers_in_customers_rows_too(program: tuple[Operation, ...]) -> None:
    explored = Explorer(with_customers(2, 9, (1,)), [program, (of_customer(0),)], buffered=True).run()
    assert explored.admitted == {1}
    assert explored.stuck == 0


# --- the checks can fail ---------------------------------------------------------------------------------------------


class ChecksThenCounts(Limits):
    """Looks whether there is room before it announces itself."""

    def acquire(self, listener: int, source: int = 0) -> Lease | Refusal:
        room = self._counts[self._own] + self._counts[self._own ^ 1] < self._plan.instance
        # Else the rival's announcement, of which there is only half, would be found to have refused without need.
        while not room and self._counts[self._own ^ 1] != self._counts[(self._own ^ 1) + self._plan.workers]:
            pass
        if not room:
            return Refusal.INSTANCE
        return Lease(self, listener, self._announce(listener, source))


class CountsTheCustomerAfterwards(Limits):
    """Announces a connection in all rows but the customer's, where it is counted once it is admitted."""

    def acquire_for(self, customer: int, listener: int, source: int = 0) -> Lease | Refusal:
        first = customer * self._workers
        if sum(self._customers[first : first + self._workers]) >= self._customer_limits[customer]:
            return Refusal.CUSTOMER
        lease = self.acquire(listener, source)
        if isinstance(lease, Refusal):
            return lease
        self._customers[first + self._column] += 1
        return CustomerLease(self, listener, lease._slot, customer)


class TakesTooManyForFull(Limits):
    """Refuses whenever the sum is too high, whatever the others are doing."""

    def _decide(self, listener: int, source: int, customer: int = NO_CUSTOMER) -> tuple[Refusal | None, bool]:
        return Refusal.INSTANCE, True


class NeverMakesWay(Limits):
    """Of two that are in each other's way, both wait for the other."""

    def _decide(self, listener: int, source: int, customer: int = NO_CUSTOMER) -> tuple[Refusal | None, bool]:
        while True:
            if self._over(listener, source, 0) is None:
                return None, True
            if not any(number & 1 for number in self._rivals()):
                return Refusal.INSTANCE, True


def test_a_limit_that_is_exceeded_is_found() -> None:
    with pytest.raises(Violation, match="2 held, the instance's limit is 1"):
        explore(System(plan(2, 1), ChecksThenCounts), (ACQUIRE,), (ACQUIRE,))


def test_a_customers_limit_that_is_exceeded_is_found() -> None:
    system = System(plan(2, 9, customers=1), CountsTheCustomerAfterwards, customer_limits=(1,))
    with pytest.raises(Violation, match="customer 0 holds more than 1"):
        explore(system, (of_customer(0),), (of_customer(0),))


def test_a_refusal_without_need_is_found() -> None:
    with pytest.raises(Violation, match="there was room all the time"):
        explore(System(plan(2, 1), TakesTooManyForFull), (ACQUIRE,), (ACQUIRE,))


def test_a_wait_for_ever_is_found() -> None:
    assert explore(System(plan(2, 1), NeverMakesWay), (ACQUIRE,), (ACQUIRE,)).stuck > 0


def test_a_missing_fence_is_found() -> None:
    with pytest.raises(Violation, match="2 held, the instance's limit is 1"):
        Explorer(System(plan(2, 1), fences=False), [(ACQUIRE,), (ACQUIRE,)], buffered=True).run()


class Recording(Automaton):
    """Remembers which tapes were taken to lead to the same state."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.merged: list[tuple[Local, tuple[int, ...], bool]] = []

    def _intern(self, key: object, made: Local) -> Local:
        known = super()._intern(key, made)
        if known is not made:
            self.merged.append((known, made.tape, made.begun))
        return known


@pytest.mark.usefixtures("two_ways")
@pytest.mark.parametrize(
    ("made", "program"),
    [
        (plan(2, 2, listeners=(1,)), (from_source(1), RELEASE, from_source(1))),
        (plan(2, 1, per_source=1), (from_source(1), RELEASE)),
    ],
)
def test_states_that_are_taken_for_the_same_go_on_alike(made: LimitPlan, program: tuple[Operation, ...]) -> None:
    """From both tapes, every answer leads to the same state: so what follows is the same however one came there."""
    system = System(made)
    explorer = Explorer(system, [program, program])
    explorer.automaton = recording = Recording(system)
    explorer.run()
    compared = 0
    for local, tape, begun in list(recording.merged):
        for value, (following, _) in list(local.edges.items()):
            assert local.access is not None
            begins = begun or local.access.kind == WRITE
            same, _ = recording.reach(local.column, local.program, local.held, (*tape, value), begins)
            assert same is following
            compared += 1
    assert compared > 50
