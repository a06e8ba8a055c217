"""Which upstream address comes first: the usable one with the fewest connections, and who is usable at what time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.core.balance import LAST_RESORTS, Backend, Balance

EJECT = 10.0  # seconds
NUMBERS = st.integers(0, 4)  # of a backend, counted round and round


def backends(count: int) -> list[Backend]:
    return [Backend((f"192.0.2.{number}", 8883)) for number in range(count)]


def fail(balance: Balance, backend: Backend, now: float) -> bool:
    balance.dialing(backend, now)
    return balance.failed(backend, now)


def eject(balance: Balance, backend: Backend, now: float) -> None:
    while not fail(balance, backend, now):
        assert backend.failures < 100, "it is never ejected"


class Seen:
    """The model: what has happened to one backend."""

    def __init__(self) -> None:
        self.dials = 0
        self.connections = 0
        self.up = True
        self.row = 0  # of failures
        self.failed = 0.0
        self.barred = 0.0  # nobody is to be sent there before
        self.probation = False  # was ejected, and nothing good was heard of it since
        self.last_dial = 0

    def usable(self, now: float) -> bool:
        return self.up and now >= self.barred


class Machine(RuleBasedStateMachine):
    """Connections of all fates, in any order, at any time; orders are compared with what the model says."""

    @initialize(count=st.integers(1, 5), fall=st.integers(1, 4))
    def begin(self, count: int, fall: int) -> None:
        self.now, self.fall, self.dialled = 1000.0, fall, 0
        self.balance = Balance(fall, EJECT)
        self.backends = backends(count)
        self.seen = {backend: Seen() for backend in self.backends}

    @rule(seconds=st.sampled_from([0.0, 0.5, EJECT - 0.5, EJECT, 3 * EJECT]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(walked=NUMBERS)
    def dial(self, walked: int) -> None:
        order = self.balance.order(self.backends, self.now)
        backend = order[walked % len(order)]
        seen = self.seen[backend]
        self.balance.dialing(backend, self.now)
        self.dialled += 1
        seen.dials += 1
        seen.last_dial = self.dialled
        if seen.probation and seen.barred <= self.now:
            seen.barred = self.now + EJECT  # the trial: the others wait for it
            seen.row = self.fall - 1  # and one failure is enough

    @precondition(lambda self: any(seen.dials for seen in self.seen.values()))
    @rule(number=NUMBERS, fate=st.sampled_from(["connected", "failed", "failed", "closed"]))
    def dial_ends(self, number: int, fate: str) -> None:
        dialled = [(backend, seen) for backend, seen in self.seen.items() if seen.dials]
        backend, seen = dialled[number % len(dialled)]
        seen.dials -= 1
        if fate == "closed":
            self.balance.closed(backend)
        elif fate == "connected":
            self.balance.connected(backend)
            seen.connections += 1
            seen.row, seen.barred, seen.probation = 0, 0.0, False
        else:
            seen.row += 1
            seen.failed = self.now
            waiting = seen.probation and seen.barred > self.now and seen.row > self.fall
            ejects = seen.row >= self.fall and not waiting
            if ejects:
                # Until a trial resets it, further failures are beyond the row that ejected it.
                seen.row, seen.barred, seen.probation = self.fall, self.now + EJECT, True
            assert self.balance.failed(backend, self.now) is ejects

    @precondition(lambda self: any(seen.connections for seen in self.seen.values()))
    @rule(number=NUMBERS)
    def connection_ends(self, number: int) -> None:
        connected = [(backend, seen) for backend, seen in self.seen.items() if seen.connections]
        backend, seen = connected[number % len(connected)]
        seen.connections -= 1
        self.balance.closed(backend)

    @rule(number=NUMBERS, up=st.booleans())
    def active_check(self, number: int, up: bool) -> None:
        backend, seen = list(self.seen.items())[number % len(self.seen)]
        self.balance.set_up(backend, up)
        if up and not seen.up:
            seen.row, seen.barred, seen.probation = 0, 0.0, False
        seen.up = up

    @invariant()
    def order_is_as_the_model_says(self) -> None:
        assert all(b.active == seen.dials + seen.connections for b, seen in self.seen.items())
        order = self.balance.order(self.backends, self.now)
        unusable = [backend for backend, seen in self.seen.items() if not seen.usable(self.now)]
        assert len(set(order)) == len(order) == len(self.backends) - max(0, len(unusable) - LAST_RESORTS)

        def rank(backend: Backend) -> tuple[bool, float, int, int]:
            seen = self.seen[backend]
            usable = seen.usable(self.now)
            return not usable, 0.0 if usable else seen.failed, backend.active, seen.last_dial

        assert order == sorted(self.backends, key=rank)[: len(order)]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 16), st.integers(0, 100))
def test_connects_alone_are_spread_to_within_one(count: int, connects: int) -> None:
    balance, row = Balance(3, EJECT), backends(count)
    for _ in range(connects):
        first = balance.order(row, 1.0)[0]
        balance.dialing(first, 1.0)
        balance.connected(first)
        active = [backend.active for backend in row]
        assert max(active) - min(active) <= 1
    assert sum(backend.active for backend in row) == connects


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 60))
def test_ties_are_spread_evenly_whoever_is_tied(active: list[int], connects: int) -> None:
    """Connections that are over at once: always the same backends are tied, not all of them."""
    balance, row = Balance(3, EJECT), backends(len(active))
    for backend, connections in zip(row, active, strict=True):
        backend.active = connections
    chosen = Counter({backend: 0 for backend in row if backend.active == min(active)})
    for _ in range(connects):
        first = balance.order(row, 1.0)[0]
        balance.dialing(first, 1.0)
        balance.connected(first)
        balance.closed(first)
        chosen[first] += 1
    assert len(chosen) == active.count(min(active))
    assert max(chosen.values()) - min(chosen.values()) <= 1


def test_what_was_never_dialled_comes_as_given() -> None:
    balance, row = Balance(3, EJECT), backends(4)
    turned = row[2:] + row[:2]
    assert balance.order(turned, 1.0) == turned
    assert balance.order(tuple(row), 1.0) == row


@pytest.mark.parametrize("count", [1, 2])
def test_the_list_is_the_caller_s_own(count: int) -> None:
    balance, row = Balance(3, EJECT), backends(count)
    balance.order(row, 1.0).clear()
    assert len(row) == len(balance.order(row, 1.0)) == count


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_exactly_so_many_failures_in_a_row_eject(fall: int) -> None:
    balance, (bad, good) = Balance(fall, EJECT), backends(2)
    balance.dialing(good, 1.0)
    for _ in range(3):
        assert [fail(balance, bad, 1.0) for _ in range(fall - 1)] == [False] * (fall - 1)
        assert balance.order([bad, good], 1.0)[0] is bad
        balance.dialing(bad, 1.0)
        balance.connected(bad)
        balance.closed(bad)
    assert [fail(balance, bad, 1.0) for _ in range(fall)] == [False] * (fall - 1) + [True]
    assert balance.order([bad, good], 1.0 + EJECT - 0.001) == [good, bad]
    assert balance.order([bad, good], 1.0 + EJECT) == [bad, good]


def test_dials_that_were_under_way_do_not_make_the_ejection_longer() -> None:
    balance, (bad, good) = Balance(2, EJECT), backends(2)
    balance.dialing(good, 1.0)
    for _ in range(5):
        balance.dialing(bad, 1.0)
    assert [balance.failed(bad, now) for now in (2.0, 3.0, 4.0, 5.0)] == [False, True, False, False]
    balance.closed(bad)
    assert balance.order([bad, good], 3.0 + EJECT) == [bad, good]


def test_after_the_ejection_one_connection_tries_and_the_others_stay_away() -> None:
    balance, (bad, good) = Balance(3, EJECT), backends(2)
    for _ in range(9):
        balance.dialing(good, 1.0)
    eject(balance, bad, 1.0)
    now = 1.0 + EJECT
    assert balance.order([bad, good], now)[0] is bad
    balance.dialing(bad, now)
    assert balance.order([bad, good], now) == [good, bad]
    assert balance.failed(bad, now + 5.0), "a single failure is enough"
    assert balance.order([bad, good], now + 5.0 + EJECT - 0.001)[0] is good
    now += 5.0 + EJECT
    assert balance.order([bad, good], now)[0] is bad
    balance.dialing(bad, now)
    balance.connected(bad)
    assert balance.order([bad, good], now)[0] is bad, "it takes part again at once"
    assert not fail(balance, bad, now), "and is given as many failures as any other"


def test_a_trial_that_was_given_up_does_not_bar_the_address_for_ever() -> None:
    balance, (bad, good) = Balance(3, EJECT), backends(2)
    balance.dialing(good, 1.0)
    eject(balance, bad, 1.0)
    balance.dialing(bad, 1.0 + EJECT)
    balance.closed(bad)
    assert balance.order([bad, good], 1.0 + 2 * EJECT)[0] is bad
    assert fail(balance, bad, 1.0 + 2 * EJECT), "it is still on trial"


def test_a_last_resort_that_fails_is_no_trial() -> None:
    balance, (bad,) = Balance(1, EJECT), backends(1)
    eject(balance, bad, 1.0)
    assert not fail(balance, bad, 2.0)
    assert bad.ejected_until == 1.0 + EJECT
    balance.dialing(bad, 3.0)
    balance.connected(bad)
    assert bad.ejected_until == 0.0


def test_only_a_change_to_up_ends_an_ejection() -> None:
    balance, (bad, good) = Balance(2, EJECT), backends(2)
    balance.dialing(good, 1.0)
    eject(balance, bad, 1.0)
    balance.set_up(bad, True)
    assert balance.order([bad, good], 2.0) == [good, bad], "it was up all the time: nothing new"
    balance.set_up(bad, False)
    assert balance.order([bad, good], 1.0 + EJECT) == [good, bad]
    balance.set_up(bad, True)
    assert balance.order([bad, good], 2.0) == [bad, good]
    assert not fail(balance, bad, 2.0), "it is not on trial"


def test_what_is_down_is_dialled_all_the_same_when_nothing_else_is_left() -> None:
    """The checks may be wrong: then connections are spread as ever."""
    balance, row = Balance(3, EJECT), backends(3)
    for backend in row:
        balance.set_up(backend, False)
    for _ in range(9):
        first = balance.order(row, 1.0)[0]
        balance.dialing(first, 1.0)
        balance.connected(first)
    assert [backend.active for backend in row] == [3, 3, 3]


def test_of_the_unusable_ones_the_least_recently_failed_comes_first() -> None:
    balance, row = Balance(1, EJECT), backends(3)
    for now, backend in enumerate((row[1], row[2], row[0]), start=1):
        eject(balance, backend, float(now))
    assert balance.order(row, 4.0) == [row[1], row[2]]
    fail(balance, row[1], 4.0)
    assert balance.order(row, 4.0) == [row[2], row[0]]


@pytest.mark.parametrize("usable", [0, 1, 5])
def test_of_many_unusable_ones_a_connection_tries_two_and_the_next_connection_others(usable: int) -> None:
    balance, row = Balance(1, EJECT), backends(20 + usable)
    for backend in row[usable:]:
        balance.set_up(backend, False)
    tried: Counter[Backend] = Counter()
    for moment in range(10):
        order = balance.order(row, 1.0 + moment)
        assert [backend.up for backend in order] == [True] * usable + [False] * LAST_RESORTS
        for backend in order[usable:]:
            fail(balance, backend, 1.0 + moment)
            tried[backend] += 1
    assert tried == dict.fromkeys(row[usable:], 1), "every one is tried by somebody"


def test_without_a_time_nothing_is_ejected() -> None:
    balance, (bad, _good) = Balance(1, 0.0), backends(2)
    assert not any(fail(balance, bad, 1.0) for _ in range(10))
    assert bad.ejected_until == 0.0


@pytest.mark.parametrize(("fall", "seconds"), [(0, 1.0), (1, -1.0)])
def test_what_makes_no_sense_is_refused(fall: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="at least"):
        Balance(fall, seconds)
