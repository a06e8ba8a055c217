"""The drain's transition table: phases in order, deadlines kept, and a way back while there is one."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.drain import (
    GRACE,
    HANDSHAKES,
    LATE,
    LEAST_GRACE,
    AgePace,
    Do,
    Event,
    Order,
    Pace,
    Phase,
    State,
    split,
    step,
)

TERM = Order(15.0, 60.0, ends=True, reason="SIGTERM")
ADMIN = Order(15.0, 60.0, ends=False, reason="admin")


@dataclass
class Run:
    """A drain that is told things at times, and what it said is to be done."""

    state: State = field(default_factory=State)
    done: list[Do] = field(default_factory=list)

    @property
    def phase(self) -> str:
        return self.state.phase.value

    def tell(self, event: Event, now: float, order: Order | None = None) -> tuple[Do, ...]:
        self.state, do = step(self.state, event, now, order)
        self.done += do
        return do


def test_a_drain_announces_closes_and_ends() -> None:
    run = Run()
    assert run.tell(Event.BEGIN, 100.0, TERM) == (Do.ANNOUNCE,)
    assert run.tell(Event.TIME, 114.9) == ()
    assert run.phase == "announcing"
    assert run.tell(Event.TIME, 115.0) == (Do.CLOSE,)
    assert run.state.left(115.0) == 60.0
    assert run.tell(Event.TIME, 174.0) == ()
    assert run.tell(Event.EMPTY, 175.0) == (Do.END,)
    assert run.phase == "ended"


def test_the_announcement_is_not_cut_short_when_nobody_is_connected() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, TERM)
    assert run.tell(Event.EMPTY, 1.0) == ()
    assert run.phase == "announcing"


def test_whoever_was_about_to_connect_is_waited_for() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, TERM)
    run.tell(Event.TIME, 15.0)
    assert run.tell(Event.EMPTY, 15.0 + 0.9 * HANDSHAKES) == ()
    assert run.phase == "closing"
    assert run.tell(Event.EMPTY, 15.0 + HANDSHAKES) == (Do.END,)


def test_not_beyond_the_time_that_is_left() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, Order(15.0, 60.0, ends=True, reason="Preempt", left=0.0))
    assert run.phase == "closing"
    assert run.tell(Event.EMPTY, run.state.over_at) == (Do.END,)


def test_a_drain_that_does_not_end_the_process_rests_when_it_is_over_and_can_be_taken_back() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, ADMIN)
    run.tell(Event.TIME, 15.0)
    assert run.tell(Event.EMPTY, 20.0) == ()
    assert run.phase == "drained"
    assert run.tell(Event.TIME, 9999.0) == ()
    assert run.tell(Event.UNDRAIN, 9999.0) == (Do.RESUME,)
    assert run.state == State()


def test_one_that_ends_the_process_ends_a_drained_one_at_once() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, ADMIN)
    run.tell(Event.TIME, 15.0)
    run.tell(Event.EMPTY, 20.0)
    assert run.tell(Event.BEGIN, 30.0, TERM) == (Do.END,)


@pytest.mark.parametrize("seconds", [1.0, 20.0], ids=["announcing", "closing"])
def test_undrain_goes_back_unless_the_process_was_told_to_end(seconds: float) -> None:
    for order, answer in ((ADMIN, (Do.RESUME,)), (TERM, ())):
        run = Run()
        run.tell(Event.BEGIN, 0.0, order)
        run.tell(Event.TIME, seconds)
        assert run.tell(Event.UNDRAIN, seconds) == answer


def test_sigterm_during_a_drain_makes_that_one_end_the_process_without_beginning_anew() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, ADMIN)
    run.tell(Event.TIME, 15.0)
    over = run.state.over_at
    assert run.tell(Event.BEGIN, 40.0, TERM) == ()
    assert (run.phase, run.state.ends, run.state.over_at) == ("closing", True, over)
    assert run.tell(Event.EMPTY, 50.0) == (Do.END,)


def test_less_time_makes_a_drain_under_way_faster_and_more_does_not_make_it_slower() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, TERM)
    run.tell(Event.TIME, 15.0)
    hurry = Order(15.0, 60.0, ends=False, reason="Preempt", left=8.0)
    assert run.tell(Event.BEGIN, 20.0, hurry) == (Do.CLOSE,)
    assert run.state.over_at <= 28.0 + LEAST_GRACE
    assert run.state.ends
    assert run.tell(Event.BEGIN, 21.0, TERM) == ()
    assert run.state.over_at <= 28.0 + LEAST_GRACE


def test_a_worker_that_does_not_get_done_is_not_waited_for() -> None:
    run = Run()
    run.tell(Event.BEGIN, 0.0, TERM)
    run.tell(Event.TIME, 15.0)
    assert run.tell(Event.TIME, 15.0 + 60.0 + GRACE + LATE) == ()
    assert run.tell(Event.TIME, 15.1 + 60.0 + GRACE + LATE) == (Do.END,)


def test_nothing_to_announce_closes_at_once() -> None:
    run = Run()
    assert run.tell(Event.BEGIN, 5.0, Order(0.0, 0.0, ends=True, reason="x")) == (Do.ANNOUNCE, Do.CLOSE)


@given(
    st.floats(0, 3600),
    st.floats(0, 3600),
    st.floats(0, 3600),
)
def test_a_deadline_from_outside_is_kept(announce: float, window: float, left: float) -> None:
    parts = split(Order(announce, window, ends=True, reason="Preempt", left=left))
    assert all(part >= 0 for part in parts)
    assert parts[0] <= announce
    assert parts[1] <= window
    assert sum(parts) <= max(left, LEAST_GRACE + 0.9 * left) + 1e-6


@pytest.mark.parametrize("left", [30.0, 8.0])
def test_an_eviction_spreads_closes_over_most_of_the_time_that_is_left(left: float) -> None:
    announce, window, _ = split(Order(15.0, 60.0, ends=True, reason="Preempt", left=left))
    assert window >= 0.65 * left
    assert announce >= 0.15 * left


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(Event),
        st.floats(0, 50),
        st.builds(
            Order,
            st.floats(0, 20),
            st.floats(0, 60),
            st.booleans(),
            st.just("test"),
            st.none() | st.floats(0, 40),
        ),
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_happens_it_ends_at_most_once_and_never_accepts_after_that(
    events: list[tuple[Event, float, Order]],
) -> None:
    run, now = Run(), 0.0
    over = None
    for event, seconds, order in events:
        now += seconds
        before = run.state
        do = run.tell(event, now, order if event is Event.BEGIN else None)
        if before.phase is Phase.ENDED:
            assert do == ()
        if before.ends and event is not Event.HURRY:
            assert run.state.ends, "nobody takes back that the process ends"
            assert Do.RESUME not in do
        if run.state.draining and before.draining and over is not None:
            assert run.state.over_at <= over, "a drain never gets longer"
        over = run.state.over_at if run.state.draining else None
        assert run.state.announced_at <= run.state.closed_at or before.draining
    assert run.done.count(Do.END) <= 1


@given(st.integers(0, 10_000), st.floats(0, 100), st.lists(st.floats(0, 30), max_size=40))
def test_closes_are_even_and_complete(count: int, window: float, steps: list[float]) -> None:
    pace, now, begun = Pace(count, 1000.0, 1000.0 + window), 1000.0, 0
    for seconds in steps:
        now += seconds
        begun += pace.due(now)
        if now < 1000.0 + window:
            assert abs(begun - count * (now - 1000.0) / window) <= 1.0
    assert begun + pace.due(1000.0 + window + 1.0) == count


@given(st.integers(1, 20_000), st.floats(0.0, 90.0), st.lists(st.integers(0, 500), max_size=40), st.floats(0.0, 1.0))
def test_who_has_lived_long_enough_has_its_turn_within_the_window(
    others: int, window: float, come_of_age: list[int], part: float
) -> None:
    """Thousands at once, then some at each tick; in the order in which they came to wait."""
    tick, connections, pace = 0.5, others, AgePace()
    waiting: deque[list[float]] = deque()  # since when, how many
    arrivals = iter([int(others * part), *come_of_age])
    now, most = 0.0, others
    while (more := next(arrivals, -1)) >= 0 or waiting:
        if more > 0:
            waiting.append([now, more])
            connections = max(connections, sum(int(count) for _, count in waiting))
            most = max(most, connections)
        count = pace.due(connections, sum(int(count) for _, count in waiting), tick, window)
        assert count <= (math.ceil(most * tick / window) if window > tick else most), "no more at once than a drain"
        connections -= count
        while count:
            assert now - waiting[0][0] <= window + tick
            taken = min(count, int(waiting[0][1]))
            waiting[0][1] -= taken
            count -= taken
            if not waiting[0][1]:
                waiting.popleft()
        now += tick
    assert pace.due(connections, 0, tick, window) == 0


def test_whoever_may_not_take_back_their_drain_makes_it_last() -> None:
    """An event that is called off must not end what an operator wants, whichever came first."""
    called_off = Order(15.0, 60.0, ends=False, reason="Reboot", lasts=False)
    for orders in ((ADMIN, called_off), (called_off, ADMIN)):
        run = Run()
        run.tell(Event.BEGIN, 0.0, orders[0])
        assert run.state.lasts is orders[0].lasts
        run.tell(Event.BEGIN, 1.0, orders[1])
        assert (run.state.lasts, run.state.reason) == (True, "admin")
        run.tell(Event.TIME, 20.0)
        run.tell(Event.EMPTY, 25.0)
        assert (run.phase, run.state.lasts) == ("drained", True)
    run = Run()
    run.tell(Event.BEGIN, 0.0, called_off)
    run.tell(Event.TIME, 20.0)
    run.tell(Event.EMPTY, 25.0)
    assert not run.state.lasts
    run.tell(Event.BEGIN, 26.0, ADMIN)
    assert (run.phase, run.state.lasts, run.state.reason) == ("drained", True, "admin")


EVICTED = Order(0.0, 60.0, ends=False, reason="scheduled event: Preempt", left=30.0, lasts=False)
HAPPENINGS: list[tuple[Event, Order | None]] = [
    (Event.BEGIN, ADMIN),
    (Event.BEGIN, EVICTED),
    (Event.BEGIN, TERM),
    (Event.UNDRAIN, None),
    (Event.CALLED_OFF, None),
    (Event.TIME, None),
    (Event.EMPTY, None),
]


def test_whoever_wants_the_drain_has_it_in_every_order_of_orders() -> None:
    """All sequences of five, beside a plain list of who wants it: undrain takes back an operator's drain first."""
    for sequence in itertools.product(HAPPENINGS, repeat=5):
        run, wanted, now = Run(), list[Order](), 0.0
        for event, order in sequence:
            now += 10.0
            before = run.state
            do = run.tell(event, now, order)
            if order is not None and order not in wanted:
                wanted.append(order)
            if event is Event.UNDRAIN and TERM not in wanted:
                for takes_back in (ADMIN, EVICTED):
                    if takes_back in wanted:
                        wanted.remove(takes_back)
                        break
            if event is Event.CALLED_OFF and EVICTED in wanted:
                wanted.remove(EVICTED)
            state = run.state
            if state.phase is Phase.ENDED:
                assert TERM in wanted
                break
            assert state.draining == bool(wanted)
            assert (Do.RESUME in do) == (before.draining and not wanted)
            assert (state.ends, state.lasts) == (TERM in wanted, TERM in wanted or ADMIN in wanted)
            assert state.event == (EVICTED.reason if EVICTED in wanted else "")
            assert not wanted or state.reason in [one.reason for one in wanted]
