"""Graceful closes that time out or end with a reset or a defect; and that none of them leaks anything."""

from __future__ import annotations

import contextlib
import random
import socket
from time import monotonic

import pytest

from relay.engines import base
from relay.engines.contract import Action, Event
from tests.engines.kinds import Kind
from tests.engines.lab import Couple, Lab, fill
from tests.engines.leaks import descriptors, drop_queued, records
from tests.engines.peers import end, pattern, receive_to_end, repeated, reset
from tests.engines.script import ScriptedHandler

GRACE = 0.4  # seconds
CROWD = 60
ROUNDS = 10


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "GRACEFUL_CLOSE_TIMEOUT", GRACE)


@pytest.mark.usefixtures("short_grace")
def test_a_client_that_does_not_end_has_its_time(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    began = monotonic()
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    couple.client.sendall(b"not yet")
    assert receive_to_end(couple.upstream) == b"not yet"
    assert monotonic() - began >= GRACE
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    assert (couple.handler.up, couple.handler.down) == (7, 0)
    engine.wait_gone()


def receive_until_over(sock: socket.socket, all_of_it: int) -> bytes:
    """Everything up to RST; up to FIN only if it was all that the engine had received."""
    data = bytearray()
    try:
        while part := sock.recv(1 << 18):
            data += part
    except ConnectionResetError:
        return bytes(data)
    assert len(data) == all_of_it
    return bytes(data)


@pytest.mark.usefixtures("short_grace")
def test_a_client_that_does_not_read_does_not_see_the_end_of_less(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.line(engine, buffers=65536).open()
    data = pattern("stuck", 50_021)
    sent = fill(engine, couple.upstream, data)
    assert engine.close_gracefully(1) == 1
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    received = receive_until_over(couple.client, couple.handler.down)
    assert received == repeated(data, sent)[: len(received)]
    engine.wait_gone()


@pytest.mark.usefixtures("short_grace")
def test_an_upstream_that_does_not_read_does_not_see_the_end_of_less(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.line(engine, buffers=65536).open()
    data = pattern("stuck", 50_021)
    sent = fill(engine, couple.client, data)
    assert engine.close_gracefully(1) == 1
    assert couple.client.recv(1) == b""
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    received = receive_until_over(couple.upstream, couple.handler.up)
    assert received == repeated(data, sent)[: len(received)]
    engine.wait_gone()


def test_a_client_that_begins_to_read_late_gets_all_that_was_received(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.line(engine, buffers=65536).open()
    data = pattern("late", 50_021)
    sent = fill(engine, couple.upstream, data)
    assert engine.close_gracefully(1) == 1
    engine.wait_ticks(5)
    assert not couple.handler.endings
    received = receive_to_end(couple.client)
    assert 0 < len(received) <= sent
    assert received == repeated(data, len(received))
    end(couple.client)
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    assert couple.handler.down == len(received)
    engine.wait_gone()


def test_late_on_both_sides(lab: Lab) -> None:
    """The client's end is there before it has taken anything; the upstream's window is closed as well."""
    engine = lab.start()
    couple = lab.line(engine, buffers=65536).open()
    down, up = pattern("down", 50_021), pattern("up", 50_023)
    fill(engine, couple.upstream, down)
    sent = fill(engine, couple.client, up)
    end(couple.client)
    assert engine.close_gracefully(1) == 1
    engine.wait_ticks(5)
    assert not couple.handler.endings
    assert receive_to_end(couple.upstream) == repeated(up, sent)
    received = receive_to_end(couple.client)
    assert received == repeated(down, len(received))
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    assert (couple.handler.up, couple.handler.down) == (sent, len(received))
    engine.wait_gone()


def test_stop_comes_first(lab: Lab) -> None:
    """STOP ends a graceful close at once, and is the event reported."""
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    engine.call(engine.engine.stop)
    assert engine.ended(couple.handler) == (Event.STOP,)
    assert receive_to_end(couple.upstream) == b""
    engine.wait_gone()


def test_a_defect_in_the_answer_ends_that_one_only(lab: Lab) -> None:
    def fail(_handler: ScriptedHandler, _value: object) -> Action:
        raise RuntimeError("no answer")

    engine = lab.start()
    broken, other = lab.line(engine, answers={Event.DRAINED: fail}).open(), lab.couple(engine)
    assert engine.close_gracefully(2) == 2
    for couple in (broken, other):
        assert receive_to_end(couple.client) == b""
        end(couple.client)
        couple.upstream.close()
    engine.wait(lambda: broken.handler.link is None, "it has ended")
    assert broken.handler.kinds[1:] == [Event.DRAINED, Event.DEFECT]
    assert engine.ended(other.handler) == (Event.DRAINED,)
    engine.wait_gone()


def _say_goodbye(couple: Couple) -> None:
    couple.client.sendall(b"goodbye")
    end(couple.client)


def _reset_the_client(couple: Couple) -> None:
    couple.client.sendall(b"x" * 1000)
    reset(couple.client)


def _answer_late(couple: Couple) -> None:
    couple.upstream.sendall(b"x" * 10_000)
    couple.client.close()


def _end_the_upstream(couple: Couple) -> None:
    couple.upstream.sendall(b"x" * 10_000)
    end(couple.upstream)


def _reset_the_upstream(couple: Couple) -> None:
    couple.upstream.sendall(b"x" * 10_000)
    reset(couple.upstream)


def _nothing(couple: Couple) -> None:
    assert couple.handler.client


WAYS = (_say_goodbye, _reset_the_client, _answer_late, _end_the_upstream, _reset_the_upstream, _nothing)


@pytest.mark.usefixtures("short_grace")
def test_crowds_leave_nothing_behind(lab: Lab, kind: Kind) -> None:
    """Whatever the peers do before, at the same moment, and afterwards."""
    engine = lab.start()
    line = lab.line(engine)
    choice = random.Random(5)

    def crowd() -> None:
        couples = [line.open() for _ in range(CROWD)]
        with engine.held_still():
            for couple in couples[::3]:
                choice.choice(WAYS)(couple)
            engine.loop.call_soon_threadsafe(engine.engine.close_gracefully, CROWD - 10, Event.DRAINED)
            for couple in couples[1::3]:
                choice.choice(WAYS)(couple)
        engine.wait_turns()
        engine.close_gracefully(CROWD)
        for couple in couples[2::3]:
            with contextlib.suppress(OSError):  # its time was over, and it is closed
                choice.choice(WAYS)(couple)
        while engine.engine.connections:
            engine.wait_ticks(1)
        lab.close_sockets(line.upstream)
        drop_queued(line.upstream)
        for couple in couples:
            assert len(couple.handler.endings) == 1

    crowd()
    engine.handlers.clear()
    engine.wait_turns()
    before_records, before_descriptors = records(kind), descriptors()
    for _ in range(ROUNDS):
        crowd()
    engine.wait_gone()
    engine.handlers.clear()
    engine.wait_turns()
    assert records(kind) == before_records
    assert descriptors() == before_descriptors
