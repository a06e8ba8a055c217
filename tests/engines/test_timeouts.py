"""Timeouts: never before their time, soon after it, and only for connections that are silent."""

from __future__ import annotations

from time import monotonic

import pytest

from relay.engines.contract import Event, Timeouts
from tests.engines.lab import TCP, Couple, Lab, fill
from tests.engines.peers import end, pattern, push, receive, receive_to_reset, repeated
from tests.engines.running import RunningEngine
from tests.engines.script import Script

IDLE = 0.5  # seconds
LATE = 1.0  # seconds that the contract allows
SLACK = 1.0  # seconds that a busy machine may add


def ends(engine: RunningEngine, couple: Couple, event: Event, began: float, timeout: float) -> None:
    """The connection ends with this event, in time, and both sides see a reset."""
    receive_to_reset(couple.client)
    elapsed = monotonic() - began
    receive_to_reset(couple.upstream)
    assert engine.ended(couple.handler) == (event,)
    assert timeout <= elapsed <= timeout + LATE + SLACK
    engine.wait_gone()


def test_silent_connection_is_idle(lab: Lab, host: str) -> None:
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    line = lab.line(engine, host)
    began = monotonic()
    ends(engine, line.open(), Event.IDLE, began, IDLE)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_silence_is_counted_from_the_last_byte(lab: Lab, down: bool) -> None:
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    couple = lab.couple(engine)
    sender, receiver = (couple.upstream, couple.client) if down else (couple.client, couple.upstream)
    engine.wait_ticks(10)
    began = monotonic()
    sender.sendall(b"x")
    assert receive(receiver, 1) == b"x"
    ends(engine, couple, Event.IDLE, began, IDLE)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_a_byte_now_and_then_keeps_it_alive(lab: Lab, down: bool) -> None:
    engine = lab.start(timeouts=Timeouts(idle=1.5, half_close=0.0))
    client, upstream, handler = lab.couple(engine)
    sender, receiver = (upstream, client) if down else (client, upstream)
    began = monotonic()
    while monotonic() - began < 3.2:
        sender.sendall(b"x")
        assert receive(receiver, 1) == b"x"
        engine.wait_ticks(10)
    assert not handler.endings


def test_slow_reader_that_still_takes_something_is_not_idle(lab: Lab) -> None:
    """Blocked all the while, and moving by a few kilobytes at a time."""
    engine = lab.start(timeouts=Timeouts(idle=3.0, half_close=0.0))
    client, upstream, handler = lab.line(engine, buffers=65536).open()
    data = pattern("drain", 50_021)
    sent = fill(engine, upstream, data)
    received = bytearray()
    began = monotonic()
    while monotonic() - began < 6.2:
        received += receive(client, 8192)
        sent = push(upstream, data, sent)
        engine.wait_ticks(4)
    assert not handler.endings
    assert bytes(received) == repeated(data, len(received))


def test_reader_that_takes_nothing_is_idle(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    couple = lab.line(engine, buffers=65536).open()
    fill(engine, couple.client, pattern("stuck", 50_021))
    assert engine.ended(couple.handler) == (Event.IDLE,)
    receive_to_reset(couple.upstream)
    engine.wait_gone()


@pytest.mark.parametrize(
    ("first", "event"),
    [("client", Event.UPSTREAM_HALF_CLOSE), ("upstream", Event.CLIENT_HALF_CLOSE)],
)
def test_half_closed_connection_whose_other_side_is_silent(lab: Lab, host: str, first: str, event: Event) -> None:
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=IDLE))
    couple = lab.couple(engine, host)
    ending, other = (couple.client, couple.upstream) if first == "client" else (couple.upstream, couple.client)
    engine.wait_ticks(10)
    began = monotonic()
    end(ending)
    assert other.recv(1) == b""
    receive_to_reset(ending)
    elapsed = monotonic() - began
    assert engine.ended(couple.handler) == (event,)
    assert IDLE <= elapsed <= IDLE + LATE + SLACK
    engine.wait_gone()


def test_half_closed_connection_that_still_carries_bytes_goes_on(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=1.5))
    couple = lab.couple(engine)
    end(couple.client)
    assert couple.upstream.recv(1) == b""
    began = monotonic()
    while monotonic() - began < 3.2:
        couple.upstream.sendall(b"x")
        assert receive(couple.client, 1) == b"x"
        engine.wait_ticks(10)
    assert not couple.handler.endings
    end(couple.upstream)
    assert engine.ended(couple.handler) == (Event.FINISHED,)


def test_a_new_idle_timeout_holds_for_established_connections(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=0.0))
    couple = lab.couple(engine)
    engine.wait_ticks(10)
    began = monotonic()
    couple.client.sendall(b"x")
    assert receive(couple.upstream, 1) == b"x"
    engine.call(engine.engine.configure, Timeouts(idle=IDLE, half_close=0.0), TCP)
    ends(engine, couple, Event.IDLE, began, IDLE)


def test_a_new_half_close_timeout_holds_for_established_connections(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=0.0))
    couple = lab.couple(engine)
    end(couple.client)
    assert couple.upstream.recv(1) == b""
    engine.call(engine.engine.configure, Timeouts(idle=600.0, half_close=IDLE), TCP)
    receive_to_reset(couple.client)
    assert engine.ended(couple.handler) == (Event.UPSTREAM_HALF_CLOSE,)


def test_timeouts_can_be_turned_off_while_they_run(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    clock = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    couple = lab.couple(engine)
    engine.call(engine.engine.configure, Timeouts(idle=0.0, half_close=0.0), TCP)
    for _ in range(2):
        assert clock.ended(lab.couple(clock).handler) == (Event.IDLE,)
    assert not couple.handler.endings


def test_zero_turns_timeouts_off(lab: Lab) -> None:
    """Observed over several times what the smallest other timeout here takes."""
    engine = lab.start(timeouts=Timeouts(idle=0.0, half_close=0.0))
    clock = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    line = lab.line(engine)
    silent, half_closed = line.open(), line.open()
    end(half_closed.client)
    for _ in range(3):
        assert clock.ended(lab.couple(clock).handler) == (Event.IDLE,)
    assert not silent.handler.endings
    assert not half_closed.handler.endings
    assert engine.engine.connections == 2


def test_without_a_half_close_timeout_idle_still_ends_it(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=0.0))
    couple = lab.couple(engine)
    began = monotonic()
    end(couple.client)
    receive_to_reset(couple.client)
    assert monotonic() - began >= IDLE
    engine.wait_gone()


def test_only_the_silent_ones_end(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=1.5, half_close=0.0))
    line = lab.line(engine)
    silent = [line.open() for _ in range(50)]
    busy = line.open()
    began = monotonic()
    while any(couple.handler.link is not None for couple in silent):
        assert monotonic() - began < 10
        busy.client.sendall(b"x")
        assert receive(busy.upstream, 1) == b"x"
        engine.wait_ticks(5)
    assert not busy.handler.endings
    assert engine.engine.connections == 1


def test_waiting_for_an_answer_is_not_idle(lab: Lab) -> None:
    """The handler that answered Wait has its own deadline; the engine's timeouts are for connections that pump."""
    engine = lab.start(timeouts=Timeouts(idle=IDLE, half_close=IDLE))
    line = lab.line(engine)
    server = lab.listening()
    client = lab.connected(lab.listen(engine, Script()))
    handler = engine.handler_of(client)
    assert engine.ended(line.open().handler) == (Event.IDLE,)
    engine.perform(handler, lab.dial(server))
    lab.accepted(server)
    engine.wait(lambda: handler.kinds == [Event.CONNECTED], "connected")
