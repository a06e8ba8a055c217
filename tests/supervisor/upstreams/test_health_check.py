"""Active checks of real sockets on loopback."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from relay.address import Address
from relay.supervisor.upstreams import health_check
from tests.supervisor.upstreams.health_rig import FAST, NEVER, A, AddressChecker, B, Rig, Server, text
from tests.support.observe import PATIENCE, descriptors


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


async def test_an_error_of_whoever_is_told_does_not_end_the_checks(rig: Rig, server: Server) -> None:
    def changed(_address: Address, _up: bool) -> None:
        raise RuntimeError("a defect")

    checker = AddressChecker(interval=FAST, rise=1, fall=1, timeout=PATIENCE, changed=changed, log=rig.log)
    checker.set_addresses([server.address])
    await rig.checks(3)
    await checker.stop()
    assert rig.log.defects == [f"check {text(server.address)}"]
