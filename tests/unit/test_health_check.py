"""Active checks of real sockets on loopback; and when they happen, on a loop whose clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import resource
import selectors
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import health_check
from relay.engines.contract import Address
from relay.health_check import HURRY, HealthChecker
from tests.observe import PATIENCE, descriptors

FAST = 0.02  # seconds between two checks
NEVER = 3600.0  # not within the time of a test
A: Address = ("192.0.2.1", 8883)
B: Address = ("2001:db8::1", 8883, 0, 0)
SHORT = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]


class Server:
    """An address on loopback that refuses until it is opened. Nobody else gets its port meanwhile."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._place = socket.socket(self._family)
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind((host, 0))
        self.address: Address = self._place.getsockname()
        self.listening: socket.socket | None = None

    def open(self, backlog: int = 1024) -> socket.socket:
        self.shut()
        self.listening = socket.create_server(self.address, family=self._family, reuse_port=True, backlog=backlog)
        self.listening.setblocking(False)
        return self.listening

    def shut(self) -> None:
        if self.listening is not None:
            self.listening.close()
            self.listening = None

    def close(self) -> None:
        self.shut()
        self._place.close()


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []  # event, address, reason

    def info(self, event: str, *, address: str, reason: str = "") -> None:
        self.lines.append((event, address, reason))

    warning = info


class Rig:
    """Checkers, what they said, and every check that has ended with its result."""

    def __init__(self) -> None:
        self.log = Log()
        self.changes: asyncio.Queue[tuple[Address, bool]] = asyncio.Queue()
        self.checked: list[tuple[Address, BaseException | None]] = []
        self.begun = asyncio.Event()
        self._ended: asyncio.Queue[None] = asyncio.Queue()
        self._probe = health_check.probe

    async def probe(self, address: Address, timeout: float) -> None:
        self.begun.set()
        error: BaseException | None = None
        try:
            await self._probe(address, timeout)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.checked.append((address, error))
            self._ended.put_nowait(None)

    async def checks(self, more: int) -> None:
        """Wait for so many more checks."""
        self._ended = asyncio.Queue()
        async with asyncio.timeout(PATIENCE):
            for _ in range(more):
                await self._ended.get()

    async def change(self) -> tuple[Address, bool]:
        async with asyncio.timeout(PATIENCE):
            return await self.changes.get()

    @asynccontextmanager
    async def checker(
        self, *addresses: Address, interval: float = FAST, rise: int = 1, fall: int = 1, timeout: float = PATIENCE
    ) -> AsyncIterator[HealthChecker]:
        made = HealthChecker(
            interval=interval,
            rise=rise,
            fall=fall,
            timeout=timeout,
            changed=lambda address, up: self.changes.put_nowait((address, up)),
            log=self.log,
        )
        made.set_addresses(addresses)
        try:
            yield made
        finally:
            await made.stop()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig()
    monkeypatch.setattr(health_check, "probe", made.probe)
    return made


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def silent(server: Server) -> Iterator[Server]:
    """Its queue is full: the kernel drops whatever else would connect."""
    server.open(backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(server.address)
    yield server
    for filler in fillers:
        filler.close()


def text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


# --- what a check finds and leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_goes_down_and_comes_up(rig: Rig, host: str) -> None:
    server = Server(host)
    server.open()
    async with rig.checker(server.address, rise=2, fall=3) as checker:
        await rig.checks(3)
        assert checker.up(server.address)
        server.shut()
        assert await rig.change() == (server.address, False)
        assert not checker.up(server.address)
        assert [error is None for _, error in rig.checked[-4:]] == [True, False, False, False]
        server.open()
        assert await rig.change() == (server.address, True)
        assert checker.up(server.address)
        assert [error is None for _, error in rig.checked[-3:]] == [False, True, True]
        await rig.checks(3)
        assert rig.changes.empty()
    server.close()
    assert rig.log.lines == [
        ("upstream down", text(server.address), "connection refused"),
        ("upstream up", text(server.address), ""),
    ]


async def test_an_address_that_does_not_answer_is_down(rig: Rig, silent: Server) -> None:
    async with rig.checker(silent.address, timeout=0.05):
        assert await rig.change() == (silent.address, False)
        assert rig.log.lines == [("upstream down", text(silent.address), "no answer in 0.05 s")]
        silent.open()
        assert await rig.change() == (silent.address, True)


async def test_the_upstream_sees_a_reset_and_not_a_byte(rig: Rig, server: Server) -> None:
    listening = server.open()
    loop = asyncio.get_running_loop()
    async with rig.checker(server.address), asyncio.timeout(PATIENCE):
        for _ in range(3):
            accepted, _peer = await loop.sock_accept(listening)
            with accepted, pytest.raises(ConnectionResetError):
                await loop.sock_recv(accepted, 1)


async def test_checks_leave_no_descriptor_behind(rig: Rig, silent: Server) -> None:
    before = len(descriptors(os.getpid()))
    for timeout, expected in ((0.03, TimeoutError), (PATIENCE, ConnectionRefusedError), (PATIENCE, type(None))):
        async with rig.checker(silent.address, timeout=timeout):
            await rig.checks(3)
            assert type(rig.checked[-1][1]) is expected
            if expected is TimeoutError:
                silent.shut()
            else:
                silent.open()
    assert len(descriptors(os.getpid())) == before


@pytest.mark.parametrize("how", ["stopped", "forgotten"])
async def test_a_check_under_way_ends_with_its_address(rig: Rig, silent: Server, how: str) -> None:
    before = len(descriptors(os.getpid()))
    async with rig.checker(silent.address) as checker:
        await asyncio.wait_for(rig.begun.wait(), PATIENCE)
        (checking,) = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(descriptors(os.getpid())) == before + 1
        if how == "stopped":
            await asyncio.wait_for(checker.stop(), PATIENCE)
        else:
            checker.set_addresses([])
            await asyncio.wait([checking], timeout=PATIENCE)
        assert checking.done()
        assert len(descriptors(os.getpid())) == before
    assert rig.changes.empty()


async def test_stop_ends_every_task_also_those_of_addresses_that_were_just_forgotten(rig: Rig) -> None:
    async with rig.checker(A, B, interval=NEVER) as checker:
        assert len(asyncio.all_tasks()) == 3
        checker.set_addresses([B])
        await checker.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_was_known_of_a_vanished_address_is_forgotten(rig: Rig, server: Server) -> None:
    other = Server()
    other.open()
    async with rig.checker(server.address, other.address) as checker:
        assert await rig.change() == (server.address, False)
        checker.set_addresses([other.address, server.address])
        assert not checker.up(server.address), "it has not vanished"
        checker.set_addresses([other.address])
        assert checker.up(server.address)
        await rig.checks(4)
        assert {address for address, _ in rig.checked[-3:]} == {other.address}
        checker.set_addresses([server.address, other.address])
        assert checker.up(server.address)
        assert await rig.change() == (server.address, False)
    other.close()


async def test_without_descriptors_nothing_is_learned_and_it_is_said_once(rig: Rig, server: Server) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig.checker(server.address):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await rig.checks(5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert {error.errno for _, error in rig.checked if isinstance(error, OSError)} == {errno.EMFILE}
        assert rig.changes.empty()
        assert rig.log.lines == [("upstream not checked", text(server.address), "this machine: too many open files")]
        assert await rig.change() == (server.address, False)


async def test_an_error_of_whoever_is_told_does_not_end_the_checks(
    rig: Rig, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def changed(_address: Address, _up: bool) -> None:
        raise RuntimeError("a defect")

    checker = HealthChecker(interval=FAST, rise=1, fall=1, timeout=PATIENCE, changed=changed, log=rig.log)
    checker.set_addresses([server.address])
    await rig.checks(3)
    await checker.stop()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None


# --- when checks happen, and how they are counted ---------------------------------------------------------------------


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
        self.checker = HealthChecker(changed=self._changed, log=self.log, **options)

    def time(self) -> float:
        return self._jumping.now

    def _changed(self, _address: Address, up: bool) -> None:
        self.changes.append((len(self.begun), up))

    async def probe(self, address: Address, _timeout: float) -> None:
        self.begun.append((address, self.time()))
        answer = self.answer(address)
        if isinstance(answer, OSError):
            raise answer
        await asyncio.sleep(answer)

    def times(self, address: Address) -> list[float]:
        return [when for one, when in self.begun if one == address]

    def play(self, story: Callable[[HealthChecker], Coroutine[Any, Any, None]]) -> Simulation:
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

    async def story(checker: HealthChecker) -> None:
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

    async def story(checker: HealthChecker) -> None:
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
        extra = max(asked, regular(first, asked)[-1] + HURRY)
        assert simulation.times(address) == pytest.approx(sorted([*regular(first, end), extra]))
    assert simulation.times(B) == pytest.approx(regular(asked + 10 * eighths / 8, end))


def test_a_check_that_is_asked_for_comes_at_once_but_not_twice_a_second() -> None:
    async def story(checker: HealthChecker) -> None:
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
    assert [round(later - sooner, 6) for sooner, later in pairwise(asked)] == [HURRY] * 5


def test_a_check_that_takes_long_is_the_only_one_of_its_address_and_moves_no_later_one() -> None:
    seconds = iter([25.0, 0.0, 0.0, 0.0])

    async def story(checker: HealthChecker) -> None:
        checker.set_addresses([A])
        await asyncio.sleep(9)
        checker.check_now(A)
        await asyncio.sleep(36)

    with patch.object(random, "random", lambda: 0.0):
        simulation = Simulation(lambda address: next(seconds)).play(story)
    assert simulation.times(A) == [0.0, 25.0, 30.0, 40.0]


def test_without_an_interval_there_are_no_checks() -> None:
    async def story(checker: HealthChecker) -> None:
        checker.set_addresses([A])
        checker.check_now(A)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(100)
        assert checker.up(A)

    assert Simulation(lambda address: OSError(errno.ECONNREFUSED, ""), interval=0.0).play(story).begun == []


@pytest.mark.parametrize("number", SHORT, ids=errno.errorcode.get)
def test_a_shortage_of_this_machine_is_logged_once_until_it_is_over(number: int) -> None:
    short: set[Address] = set()

    async def story(checker: HealthChecker) -> None:
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
    async def story(checker: HealthChecker) -> None:
        checker.set_addresses([A, B])
        await asyncio.sleep(10)
        assert checker.up(A)
        assert not checker.up(B)

    simulation = Simulation(lambda address: OSError(errno.ENETUNREACH, "") if address == B else 0.0).play(story)
    assert simulation.log.lines == [("upstream down", text(B), "network is unreachable")]
