"""When addresses are checked, and how that is counted, on a loop whose clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import selectors
from collections.abc import Callable, Coroutine
from contextlib import closing
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.address import Address
from relay.supervisor.tls_check import TrustStore
from relay.supervisor.upstreams import health_check
from relay.supervisor.upstreams.health_check import MIN_INTERVAL
from tests.supervisor.upstreams.health_rig import NEVER, SHORT, A, AddressChecker, B, Log, text


class Jumping(selectors.DefaultSelector):
    """Waits for nothing: time has gone by at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "nothing is left to wait for"
            self.now += timeout
        return events


class Simulation(asyncio.SelectorEventLoop):
    """Time is simulated, from 0, and so is what checks find: `answer(address)` seconds later, or its error at once."""

    def __init__(self, answer: Callable[[Address], Any] = lambda address: 0.0, **options: Any) -> None:
        self._jumping = Jumping()
        super().__init__(self._jumping)
        self.answer = answer
        self.begun: list[tuple[Address, float]] = []
        self.changes: list[tuple[int, bool]] = []  # after how many checks
        self.log = Log()
        options = {"interval": 10.0, "rise": 1, "fall": 1, "timeout": 5.0, **options}
        self.checker = AddressChecker(changed=self._changed, log=self.log, **options)

    def time(self) -> float:
        return self._jumping.now

    def _changed(self, _address: Address, up: bool) -> None:
        self.changes.append((len(self.begun), up))

    async def probe(self, address: Address, _timeout: float, _tls: None, _trust: TrustStore) -> float:
        self.begun.append((address, self.time()))
        answer = self.answer(address)
        if isinstance(answer, OSError):
            raise answer
        await asyncio.sleep(answer)
        return 0.0

    def times(self, address: Address) -> list[float]:
        return [when for one, when in self.begun if one == address]

    def play(self, story: Callable[[AddressChecker], Coroutine[Any, Any, None]]) -> Simulation:
        async def whole() -> None:
            await story(self.checker)
            await self.checker.stop()

        with closing(self), patch.object(health_check, "probe", self.probe):
            self.run_until_complete(whole())
        return self


@settings(deadline=None)
@given(st.lists(st.sampled_from("+-?"), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_rise_and_fall_count_what_comes_in_a_row(script: list[str], rise: int, fall: int) -> None:
    """+ success, - failure, ? a shortage of this machine, which counts neither way."""
    answers = iter(script)

    def answer(_address: Address) -> float | OSError:
        found = next(answers)
        return 0.0 if found == "+" else OSError(errno.EMFILE if found == "?" else errno.ECONNREFUSED, "")

    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A])
        await asyncio.sleep(10.0 * len(script))

    expected, up, row = [], True, ""
    for number, found in enumerate(script, start=1):
        row += found.strip("?")
        if row.endswith("-" * fall if up else "+" * rise):
            up, row = not up, ""
            expected.append((number, up))
    simulation = Simulation(answer, rise=rise, fall=fall).play(story)
    assert len(simulation.begun) == len(script)
    assert simulation.changes == expected


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 7))
def test_checks_are_spread_over_the_interval_and_keep_their_places(count: int, eighths: int) -> None:
    addresses: list[Address] = [(f"192.0.2.{number}", 8883) for number in range(count)]
    asked, end = 12.3, 40.8  # nothing else comes at these times

    async def story(checker: AddressChecker) -> None:
        checker.set_addresses(addresses)
        await asyncio.sleep(asked)
        checker.set_addresses([B, *addresses])
        for address in addresses:
            checker.check_now(address)
        await asyncio.sleep(end - asked)

    with patch.object(random, "random", lambda: eighths / 8):
        simulation = Simulation().play(story)

    def regular(first: float, before: float) -> list[float]:
        return [when for when in (first + 10 * number for number in range(5)) if when < before]

    for place, address in enumerate(addresses):
        first = 10 * (place + eighths / 8) / count
        extra = max(asked, regular(first, asked)[-1] + MIN_INTERVAL)
        assert simulation.times(address) == pytest.approx(sorted([*regular(first, end), extra]))
    assert simulation.times(B) == pytest.approx(regular(asked + 10 * eighths / 8, end))


def test_a_check_that_is_asked_for_comes_at_once_but_not_twice_a_second() -> None:
    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A, B])
        checker.check_now(("192.0.2.99", 1))  # unknown, perhaps just vanished
        await asyncio.sleep(NEVER - 100)
        for _ in range(42):
            checker.check_now(A)
            await asyncio.sleep(0.1)
        await asyncio.sleep(90)

    with patch.object(random, "random", lambda: 0.5):
        simulation = Simulation(interval=NEVER).play(story)
    assert simulation.times(B) == [0.75 * NEVER]
    assert simulation.times(A)[0] == 0.25 * NEVER
    asked = simulation.times(A)[1:]
    assert asked[0] == NEVER - 100
    assert [round(later - sooner, 6) for sooner, later in pairwise(asked)] == [MIN_INTERVAL] * 5


def test_a_check_that_takes_long_is_the_only_one_of_its_address_and_moves_no_later_one() -> None:
    seconds = iter([25.0, 0.0, 0.0, 0.0])

    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A])
        await asyncio.sleep(9)
        checker.check_now(A)
        await asyncio.sleep(36)

    with patch.object(random, "random", lambda: 0.0):
        simulation = Simulation(lambda address: next(seconds)).play(story)
    assert simulation.times(A) == [0.0, 25.0, 30.0, 40.0]


def test_without_an_interval_there_are_no_checks() -> None:
    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A])
        checker.check_now(A)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(100)
        assert checker.up(A)

    assert Simulation(lambda address: OSError(errno.ECONNREFUSED, ""), interval=0.0).play(story).begun == []


@pytest.mark.parametrize("number", SHORT, ids=errno.errorcode.get)
def test_a_shortage_of_this_machine_is_logged_once_until_it_is_over(number: int) -> None:
    short: set[Address] = set()

    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A, B])
        for concerned in ((A, B), (A,), (), (A,)):
            short.clear()
            short.update(concerned)
            await asyncio.sleep(50)
        checker.set_addresses([B])  # forgets what A was short of
        short.add(B)
        await asyncio.sleep(50)

    simulation = Simulation(lambda address: OSError(number, "") if address in short else 0.0).play(story)
    reason = f"this machine: {os.strerror(number).lower()}"
    assert [(event, why) for event, _, why in simulation.log.lines] == [("upstream not checked", reason)] * 3
    assert simulation.changes == []


def test_an_address_this_machine_has_no_way_to_is_down() -> None:
    async def story(checker: AddressChecker) -> None:
        checker.set_addresses([A, B])
        await asyncio.sleep(10)
        assert checker.up(A)
        assert not checker.up(B)

    simulation = Simulation(lambda address: OSError(errno.ENETUNREACH, "") if address == B else 0.0).play(story)
    assert simulation.log.lines == [("upstream down", text(B), "network is unreachable")]
