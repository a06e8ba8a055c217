"""Token buckets: never more than the rate and one burst, as soon as there is a token again, whatever the sources do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.rates import NANO, SETS, SINGLES, WAYS, Late, Rate, RatePlan, Rates

RATES = st.builds(
    Rate,
    st.floats(0.01, 100_000.0),
    st.floats(1.0, 1000.0),
)
GAPS = st.lists(st.integers(0, 2 * NANO), min_size=1, max_size=60)


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * NANO

    def __call__(self) -> int:
        return self.now


def make(plan: RatePlan, clock: Clock) -> Rates:
    cells = plan.source_cells
    return Rates(plan, [0] * SINGLES, [0] * cells, [0] * cells, None, clock, [0] * plan.customers)


def assert_within(rate: Rate, taken: list[int]) -> None:
    """In no interval are there more than its tokens and one burst."""
    for i, first in enumerate(taken):
        for j in range(i, len(taken)):
            tokens = max(1.0, rate.burst) + rate.per_second * (taken[j] - first) / NANO
            assert j - i + 1 <= tokens + 1e-6 * tokens


@given(RATES, GAPS)
def test_the_instance_s_rate_is_kept_in_every_interval(rate: Rate, gaps: list[int]) -> None:
    clock = Clock()
    rates, taken = make(RatePlan(accept=rate), clock), []
    for gap in gaps:
        clock.now += gap
        taken += [clock.now for _ in range(3) if rates.accept()]
    assert taken[0] == 1000 * NANO + gaps[0], "the first one always has a token"
    assert_within(rate, taken)


@given(st.floats(0.01, 100_000.0), st.integers(1, 50))
def test_a_burst_after_a_pause_and_then_one_each_interval(per_second: float, burst: int) -> None:
    clock = Clock()
    rate = Rate(per_second, float(burst))
    rates = make(RatePlan(accept=rate), clock)
    for _ in range(2):
        assert [rates.accept() for _ in range(burst + 1)] == [True] * burst + [False]
        clock.now += rate.interval
        assert rates.accept()
        assert not rates.accept()
        clock.now += rate.interval * (burst + 1)


def test_no_rate_is_no_limit() -> None:
    rates = make(RatePlan(), Clock())
    assert all(rates.accept() for _ in range(10_000))
    assert not rates.by_source


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, NANO // 2)), min_size=1, max_size=80))
def test_sources_do_not_touch_each_other_s_tokens(steps: list[tuple[int, int]]) -> None:
    """Also not where they share a set: all of these do."""
    rate, clock = Rate(3.0, 2.0), Clock()
    together = make(RatePlan(source=rate), clock)
    alone = {number: make(RatePlan(source=rate), clock) for number in range(1, 6)}
    for number, gap in steps:
        clock.now += gap
        source = number * SETS
        assert together.source(source) == alone[number].source(source)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, NANO // 2)), min_size=1, max_size=80))
def test_customers_do_not_touch_each_other_s_tokens(steps: list[tuple[int, int]]) -> None:
    clock, of = Clock(), [Rate(3.0, 2.0), Rate(5.0, 1.0), Rate(0.5, 4.0)]
    rates = make(RatePlan(accept=Rate(1.0, 1.0), customers=3), clock)
    taken: list[list[int]] = [[], [], []]
    for slot, gap in steps:
        clock.now += gap
        if rates.customer(slot, of[slot].interval, of[slot].tolerance):
            taken[slot].append(clock.now)
        else:
            assert taken[slot], "the first one always has a token"
    for rate, times in zip(of, taken, strict=True):
        assert_within(rate, times)
    assert rates.accept(), "nor the instance's"


def test_a_customer_s_tokens_come_back_at_its_rate() -> None:
    clock, rate = Clock(), Rate(10.0, 3.0)
    rates = make(RatePlan(customers=1), clock)

    def take() -> bool:
        return rates.customer(0, rate.interval, rate.tolerance)

    assert [take() for _ in range(4)] == [True, True, True, False]
    clock.now += rate.interval
    assert [take(), take()] == [True, False]


def test_a_flood_of_sources_takes_the_fullest_bucket_s_place_and_lets_nobody_out() -> None:
    rate, clock = Rate(1.0, 10.0), Clock()
    rates = make(RatePlan(source=rate), clock)
    hammering = 1 << 40
    assert [rates.source(hammering) for _ in range(11)] == [True] * 10 + [False]
    for number in range(2, 2 + 50 * WAYS):  # all in the hammering source's set
        assert rates.source(number << 41), "a source that was never seen has its tokens"
    assert not rates.source(hammering), "and is not what makes the table forget who has none"


def test_a_source_that_was_forgotten_has_lost_nothing_but_time() -> None:
    """A slot whose bucket is full again is the first to be used for another."""
    rate, clock = Rate(1.0, 1.0), Clock()
    rates = make(RatePlan(source=rate), clock)
    for number in range(1, WAYS + 1):
        assert rates.source(number * SETS)
        clock.now += NANO // (2 * WAYS)
    clock.now += NANO // 2  # the first few are full again
    assert rates.source((WAYS + 1) * SETS)
    assert rates.source(1 * SETS)
    assert not rates.source(WAYS * SETS), "the last one came half a second ago and is still remembered"


@given(
    st.floats(1.0, 10_000.0),
    st.integers(1, 20),
    st.integers(0, 100),
    st.floats(0.001, 5.0),
    st.lists(st.integers(0, NANO // 100), min_size=1, max_size=200),
)
def test_dials_are_reserved_in_order_within_rate_queue_and_timeout(
    per_second: float, burst: int, queue: int, seconds: float, gaps: list[int]
) -> None:
    clock = Clock()
    rate = Rate(per_second, float(burst))
    rates = make(RatePlan(dial=rate, queue=queue, queue_seconds=seconds), clock)
    starts: list[int] = []
    for gap in gaps:
        clock.now += gap
        waiting = sum(start > clock.now for start in starts)
        start = rates.dial()
        if isinstance(start, Late):
            if start.full:
                assert waiting >= queue
            else:
                assert starts[-1] + rate.interval - clock.now > seconds * NANO - 2
            continue
        assert start >= clock.now
        assert start - clock.now <= seconds * NANO
        assert start == clock.now or waiting < max(queue, 1)
        starts.append(start)
    assert all(earlier <= later for earlier, later in pairwise(starts))
    assert_within(rate, starts)


def test_a_dial_s_turn_comes_as_soon_as_there_is_a_token() -> None:
    clock = Clock()
    rates = make(RatePlan(dial=Rate(10.0, 2.0), queue=3, queue_seconds=1.0), clock)
    begun = clock.now
    starts = [rates.dial() for _ in range(6)]
    tenth = NANO // 10
    assert starts == [begun, begun, begun + tenth, begun + 2 * tenth, begun + 3 * tenth, Late(full=True)]
    clock.now += tenth
    assert rates.dial() == begun + 4 * tenth
    assert rates.dial() == Late(full=True)


def test_a_lock_that_is_not_to_be_had_refuses() -> None:
    class Held:
        def acquire(self, _number: int, /) -> bool:
            return False

        def release(self, number: int, /) -> None:
            pytest.fail(f"lock {number} was given back, though never had")

    plan = RatePlan(accept=Rate(1.0, 1.0), source=Rate(1.0, 1.0), dial=Rate(1.0, 1.0), queue=1, queue_seconds=1.0)
    cells = plan.source_cells
    rates = Rates(plan, [0] * SINGLES, [0] * cells, [0] * cells, Held(), Clock())
    assert not rates.accept()
    assert not rates.source(1)
    assert not rates.customer(0, NANO, 0)
    assert rates.dial() == Late(full=False)


def test_the_slowest_rate_with_the_largest_burst_fits_into_its_cell() -> None:
    clock, rate = Clock(), Rate(0.001, 10_000_000.0)
    clock.now = 10 * 365 * 86_400 * NANO
    cell = memoryview(bytearray(8 * SINGLES)).cast("Q")
    rates = Rates(RatePlan(accept=rate), cell, [], [], None, clock)
    cell[0] = clock.now + rate.tolerance
    assert rates.accept()
    assert not rates.accept()


def test_each_route_has_a_bucket_of_its_own_and_takes_none_of_the_dial_rate() -> None:
    clock = Clock()
    rate = Rate(1.0, 1.0)
    rates = make(RatePlan(dial=rate, routes=(rate, Rate(10.0, 1.0)), queue=9, queue_seconds=99.0), clock)
    first = clock.now
    assert [rates.dial_on_route(0) for _ in range(3)] == [first, first + NANO, first + 2 * NANO]
    assert [rates.dial_on_route(1) for _ in range(2)] == [first, first + NANO // 10]
    assert rates.dial() == first
    assert rates.dial_on_route(0) == first + 3 * NANO
