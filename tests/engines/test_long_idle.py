"""Long-idle connections: an engine may keep them in a cheaper way, and no peer must notice."""

from __future__ import annotations

import socket

import pytest

from relay.engines import idle
from relay.engines.contract import Event, Timeouts
from tests.engines.lab import Couple, Lab
from tests.engines.peers import Receiving, Sending, blocks, end, pattern, receive, receive_to_reset, reset
from tests.engines.running import TICK, RunningEngine
from tests.support.programs import PATIENCE

LONG_IDLE = 0.1  # seconds
TIMEOUTS = Timeouts(idle=0.0, half_close=2.0 * PATIENCE)  # checked eight times as often
CHECKS = int(0.8 * PATIENCE / TICK)  # ticks in which an engine checks at least twice

SIDES = pytest.mark.parametrize("down", [False, True], ids=["up", "down"])


@pytest.fixture
def engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> RunningEngine:
    monkeypatch.setattr(idle, "LONG_IDLE", LONG_IDLE)
    return lab.start(timeouts=TIMEOUTS)


def silent(lab: Lab, engine: RunningEngine) -> Couple:
    """A connection over which a message has gone each way, and then nothing for long."""
    couple = lab.couple(engine)
    exchange(couple, b"hello", b"welcome")
    engine.wait_ticks(CHECKS)
    return couple


def exchange(couple: Couple, request: bytes, response: bytes) -> None:
    couple.client.sendall(request)
    assert receive(couple.upstream, len(request)) == request
    couple.upstream.sendall(response)
    assert receive(couple.client, len(response)) == response


def ends(couple: Couple, down: bool) -> tuple[socket.socket, socket.socket]:
    """The sending and the receiving side."""
    return (couple.upstream, couple.client) if down else (couple.client, couple.upstream)


@SIDES
def test_messages_go_on(lab: Lab, engine: RunningEngine, down: bool) -> None:
    couple = silent(lab, engine)
    sender, receiver = ends(couple, down)
    for size in (1, 1984, 1985, 70_000):
        data = pattern(size, size)
        sender.sendall(data)
        assert receive(receiver, size) == data
    exchange(couple, b"ping", b"pong")
    engine.wait_ticks(CHECKS)
    exchange(couple, b"ping", b"pong")
    couple.client.close()
    couple.upstream.close()
    assert engine.ended(couple.handler) == (Event.FINISHED,)
    assert (couple.handler.up, couple.handler.down) == (
        13 + (0 if down else 73_970),
        15 + (73_970 if down else 0),
    )


@SIDES
def test_bulk_goes_on(lab: Lab, engine: RunningEngine, down: bool) -> None:
    couple = silent(lab, engine)
    sender, receiver = ends(couple, down)
    receiving, sending = Receiving(receiver), Sending(sender, blocks("after silence", 16))
    sending.finish()
    receiving.finish()
    assert receiving.digest.digest() == sending.digest.digest()


@SIDES
def test_a_reset_is_passed_on(lab: Lab, engine: RunningEngine, down: bool) -> None:
    couple = silent(lab, engine)
    sender, receiver = ends(couple, down)
    reset(sender)
    receive_to_reset(receiver)
    assert engine.ended(couple.handler) == (Event.UPSTREAM_RESET if down else Event.CLIENT_RESET,)
    engine.wait_gone()


@SIDES
def test_an_end_is_passed_on_and_the_other_direction_goes_on(lab: Lab, engine: RunningEngine, down: bool) -> None:
    couple = silent(lab, engine)
    first, second = ends(couple, down)
    end(first)
    assert second.recv(1) == b""
    second.sendall(b"late")
    assert receive(first, 4) == b"late"
    second.close()
    assert first.recv(1) == b""
    assert engine.ended(couple.handler) == (Event.FINISHED,)


def test_a_half_closed_connection_that_is_silent_goes_on(lab: Lab, engine: RunningEngine) -> None:
    couple = lab.couple(engine)
    end(couple.client)
    assert couple.upstream.recv(1) == b""
    engine.wait_ticks(CHECKS)
    couple.upstream.sendall(b"late")
    assert receive(couple.client, 4) == b"late"
    couple.upstream.close()
    assert couple.client.recv(1) == b""
    assert engine.ended(couple.handler) == (Event.FINISHED,)


def test_many_that_fall_silent_and_all_talk_at_once(lab: Lab, engine: RunningEngine) -> None:
    line = lab.line(engine)
    couples = [line.open() for _ in range(100)]
    for _ in range(2):
        engine.wait_ticks(CHECKS)
        with engine.held_still():
            for number, couple in enumerate(couples):
                couple.client.sendall(pattern(number, 500 + 40 * number))
                couple.upstream.sendall(pattern(number, 600 + 50 * number))
        for number, couple in enumerate(couples):
            assert receive(couple.upstream, 500 + 40 * number) == pattern(number, 500 + 40 * number)
            assert receive(couple.client, 600 + 50 * number) == pattern(number, 600 + 50 * number)


def test_it_may_end_while_it_is_silent(lab: Lab, engine: RunningEngine) -> None:
    couple = silent(lab, engine)
    engine.close_engine()
    assert couple.client.recv(1) == b""
    assert couple.upstream.recv(1) == b""
    assert couple.handler.endings == [Event.STOP]
