"""More completions in one turn than the completion ring has room for: the kernel keeps the rest, and order is kept.

That a send fell short is then reported later than usual, behind messages for the same peer. From Linux 6.13 on
an entry brings only a few completions more than it waits for (IO_LOCAL_TW_DEFAULT_MAX), before it brings all that there
are; so the ring is made as small as it has to be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
from collections.abc import Iterator

import pytest

from relay.engines.contract import Event
from relay.engines.ring import reactor
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.pump import BUFFER_SIZE, Pump
from relay.engines.ring.records import Link, Side
from tests.engines.lab import Couple, Lab, Line
from tests.engines.peers import Receiving, end, pattern, receive
from tests.engines.ring.rings import ring_kind
from tests.engines.running import RunningEngine

ROOM = 16  # completions
STEP = 300  # bytes
MOST = 30_000  # more than there is ever room for


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(reactor, "ENTRIES", ROOM)
    monkeypatch.setattr(reactor, "COMPLETIONS", ROOM)
    monkeypatch.setattr(reactor, "CHUNK", 4)
    monkeypatch.setattr(reactor, "FULL", ROOM - 4 - 2)
    laboratory = Lab(ring_kind())
    yield laboratory
    laboratory.close()


@pytest.fixture
def shorts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The results of the sends that fell short, as the ring reports them."""
    short: list[int] = []
    plain = Pump.sent

    def sent(self: Pump, user_data: int, result: int, side: Side, many: bool) -> None:
        short.append(result)
        plain(self, user_data, result, side, many)

    monkeypatch.setattr(Pump, "sent", sent)
    return short


@pytest.fixture
def overflows(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each turn that found the ring full: whether the kernel kept more."""
    kept: list[bool] = []
    plain = reactor.Reactor._catch_up

    def catch_up(self: reactor.Reactor) -> int:
        kept.append(self.ring.overflowing)
        return plain(self)

    monkeypatch.setattr(reactor.Reactor, "_catch_up", catch_up)
    return kept


def narrow(line: Line, room: int = 1) -> Couple:
    """A connection whose upstream takes a few kilobytes; `room`: of its receive buffer, 1 as little as there can be."""
    couple = line.open()
    couple.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    link = couple.handler.link
    assert isinstance(link, Link)
    assert link.upstream is not None
    with socket.socket(fileno=os.dup(link.upstream.fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return couple


def turn(engine: RunningEngine, count: int = 1) -> None:
    """In the engine's thread."""
    assert isinstance(engine.engine, RingEngine)
    for _ in range(count):
        engine.engine._reactor.turn()


def fill(engine: RunningEngine, couple: Couple, data: bytes) -> bool:
    """In the engine's thread: whether the kernel takes all of that for the upstream, which does not read it."""
    for at in range(0, len(data), STEP):
        couple.client.sendall(data[at : at + STEP])
        turn(engine, 4)
    return not engine.engine.held


@pytest.mark.parametrize("before", range(ROOM - 4, ROOM + 6))
def test_no_message_overtakes_a_send_whose_failure_is_told_late(
    lab: Lab, shorts: list[int], overflows: list[bool], before: int
) -> None:
    """`before`: how many completions come before those of the one whose order matters."""
    engine = lab.start()
    line = lab.line(engine)
    others = [line.open() for _ in range(2 * ROOM)]

    def act(couple: Couple, data: bytes) -> None:
        for number, other in enumerate(others):
            if number == before:
                couple.client.sendall(data)
            other.client.sendall(b"x")
        turn(engine, 8)

    for size in range(0, MOST, STEP):
        couple = narrow(line)
        data = pattern((before, size), size + 3 * BUFFER_SIZE)
        room = engine.call(fill, engine, couple, data[:size])
        if room:
            engine.call(act, couple, data[size:])
            assert receive(couple.upstream, len(data)) == data
            for other in others:
                assert receive(other.upstream, 1) == b"x"
        couple.client.close()
        couple.upstream.close()
        engine.ended(couple.handler)
        if not room:
            break
    assert shorts
    assert any(overflows)


@pytest.mark.parametrize("seed", range(4))
def test_everybody_at_once_towards_readers_that_are_slow(
    lab: Lab, shorts: list[int], overflows: list[bool], seed: int
) -> None:
    """Bytes, order and ends, with more completions in nearly every turn than there is room for."""
    engine = lab.start()
    line = lab.line(engine)
    choice = random.Random(seed)
    couples = [narrow(line, 65536) if number % 2 else line.open() for number in range(3 * ROOM)]
    data = [pattern((seed, number), choice.randrange(1, 250_000)) for number in range(len(couples))]
    left = dict(enumerate(data))
    readers: list[Receiving] = []
    rounds = 0
    while left:
        with engine.held_still():
            for number, rest in list(left.items()):
                taken = 0
                with contextlib.suppress(BlockingIOError):
                    taken = couples[number].client.send(rest[: choice.randrange(1, 30_000)], socket.MSG_DONTWAIT)
                left[number] = rest[taken:]
                if not left[number]:
                    del left[number]
                    end(couples[number].client)
        engine.wait_turns(choice.randrange(3))
        rounds += 1
        if rounds == 20:  # by then the narrow ways are full
            readers = [Receiving(couple.upstream) for couple in couples]
    readers = readers or [Receiving(couple.upstream) for couple in couples]
    for couple, reader, whole in zip(couples, readers, data, strict=True):
        reader.finish()
        assert reader.received == len(whole)
        assert reader.digest.digest() == hashlib.sha1(whole).digest()
        couple.upstream.close()
        assert engine.ended(couple.handler) == (Event.FINISHED,)
    engine.wait_gone()
    assert shorts
    assert any(overflows)
