"""A reset behind a FIN that the engine has received truncates nothing: the other side gets all that came before it."""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest

from relay.engines import lingering
from relay.engines.contract import Event, Timeouts
from tests.engines.lab import Couple, Lab
from tests.engines.peers import (
    Sending,
    end,
    pattern,
    push,
    receive,
    receive_to_end,
    receive_to_reset,
    repeated,
    reset,
    unacknowledged,
    wait_reset,
)
from tests.engines.running import RunningEngine

SIDES = pytest.mark.parametrize("culprit", ["client", "upstream"])
EVENTS = {"client": Event.CLIENT_RESET, "upstream": Event.UPSTREAM_RESET}
IN_TIME = pytest.mark.usefixtures("in_time")
SMALL = 65536  # bytes of the kernel buffers beside the engine, so that something is held


@pytest.fixture
def in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, the side that is left ends before its time is up."""
    monkeypatch.setattr(lingering, "LINGER", 600.0)


def sides(couple: Couple, culprit: str) -> tuple[socket.socket, socket.socket]:
    """The side that ends and resets, and the other one."""
    return (couple.client, couple.upstream) if culprit == "client" else (couple.upstream, couple.client)


def answer_and_close(engine: RunningEngine, sock: socket.socket, data: bytes) -> int:
    """Send until the engine holds some of it, then FIN, and close once the engine's kernel has it all; bytes sent."""
    sent, still = 0, 0
    while still < 3:  # what is held for a moment only does not count
        if engine.engine.held:
            still += 1
            engine.wait_ticks(1)
        else:
            still = 0
            sent += sock.send(data[sent % len(data) :])
            engine.wait(lambda: not unacknowledged(sock), "the engine's kernel has it")
    # More than is held: what the engine has not read yet must not be forgotten.
    sent += sock.send(data[sent % len(data) :][:16384])
    end(sock)
    engine.wait(lambda: not unacknowledged(sock), "the engine's kernel has the end")
    sock.close()
    return sent


@IN_TIME
@SIDES
@pytest.mark.parametrize("messages", [1, 3])
def test_one_who_speaks_while_it_reads_gets_the_whole_answer_of_one_who_has_closed(
    lab: Lab, host: str, culprit: str, messages: int
) -> None:
    engine = lab.start()
    couple = lab.line(engine, host, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    data = pattern(culprit, 65_537)
    sent = answer_and_close(engine, this, data)
    for _ in range(messages):
        other.sendall(b"x")  # answered with RST
        engine.wait(lambda: not unacknowledged(other), "the engine's kernel has it")
        engine.wait_ticks(3)
    assert receive_to_end(other) == repeated(data, sent)
    end(other)
    assert engine.ended(couple.handler) == (Event.FINISHED,)
    assert (couple.handler.down if culprit == "upstream" else couple.handler.up) == sent
    engine.wait_gone()


@IN_TIME
@SIDES
def test_one_who_sends_much_gets_the_whole_answer_of_one_who_has_closed(lab: Lab, culprit: str) -> None:
    """It reads only when everything is sent: what it sends to nobody has to be taken."""
    engine = lab.start()
    couple = lab.line(engine, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    data = pattern(culprit, 65_537)
    sent = answer_and_close(engine, this, data)
    sending = Sending(other, [b"x" * 4_000_000])
    sending.finish()
    assert receive_to_end(other) == repeated(data, sent)
    assert engine.ended(couple.handler) == (Event.FINISHED,)
    engine.wait_gone()


@IN_TIME
@SIDES
def test_a_goodbye_to_one_who_has_closed_is_an_end_in_good_order(lab: Lab, culprit: str) -> None:
    """TLS: close_notify, and FIN behind it; in one go, or in two, with the RST in between."""
    engine = lab.start()
    line = lab.line(engine)
    for number in range(60):
        couple = line.open()
        this, other = sides(couple, culprit)
        this.sendall(b"answer")
        this.close()
        assert receive_to_end(other) == b"answer"
        for _ in range(number % 3):
            other.sendall(b"disconnect")
            if number % 2:
                engine.wait_ticks(1)
        other.sendall(b"close notify")
        if number % 2:
            engine.wait_ticks(1)
        other.close()
        assert engine.ended(couple.handler) == (Event.FINISHED,)
    engine.wait_gone()


@SIDES
@pytest.mark.parametrize("ends", [False, True], ids=["silent", "ends"])
def test_bytes_end_and_reset_are_there_before_the_engine_looks(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, culprit: str, ends: bool
) -> None:
    if ends:
        monkeypatch.setattr(lingering, "LINGER", 600.0)
    engine = lab.start()
    couple = lab.couple(engine)
    this, other = sides(couple, culprit)
    with engine.held_still():
        this.sendall(b"last words")
        end(this)
        while unacknowledged(this):
            pass
        reset(this)
    assert receive_to_end(other) == b"last words"
    if ends:
        end(other)
        assert engine.ended(couple.handler) == (Event.FINISHED,)
    else:
        wait_reset(other)
        assert engine.ended(couple.handler) == (EVENTS[culprit],)
    engine.wait_gone()


@SIDES
def test_one_who_goes_on_sending_to_nobody_is_told_by_a_reset(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    this.sendall(b"answer")
    this.close()
    assert receive_to_end(other) == b"answer"
    send_on = Sending(other, itertools.repeat(b"x" * 100))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_on.finish()
    assert engine.ended(couple.handler) == (EVENTS[culprit],)
    engine.wait_gone()


@SIDES
def test_reset_before_the_end_was_received_is_a_reset_also_if_the_other_has_ended(
    lab: Lab, host: str, culprit: str
) -> None:
    """Both FINs were sent, but one of them is stuck behind bytes that the engine has no room for."""
    engine = lab.start()
    couple = lab.line(engine, host, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    end(other)
    assert this.recv(1) == b""
    data = pattern("stuck", 65_537)
    before, sent = -1, 0
    while sent != before:  # until the whole way is full
        before, sent = sent, push(this, data, sent)
        engine.wait_ticks(3)
    end(this)
    assert unacknowledged(this)
    reset(this)
    assert len(receive_to_reset(other)) < sent
    assert engine.ended(couple.handler) == (EVENTS[culprit],)
    engine.wait_gone()


@IN_TIME
@SIDES
def test_one_who_does_not_read_and_resets_ends_it(lab: Lab, culprit: str) -> None:
    """Its own reset is what is told."""
    engine = lab.start()
    couple = lab.line(engine, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    answer_and_close(engine, this, pattern("unread", 65_537))
    other.sendall(b"x")
    engine.wait_ticks(5)
    assert not couple.handler.endings
    reset(other)
    assert engine.ended(couple.handler) == (EVENTS["client" if culprit == "upstream" else "upstream"],)
    engine.wait_gone()


@IN_TIME
@SIDES
def test_one_who_does_not_read_is_waited_for_as_long_as_a_half_closed_one(lab: Lab, culprit: str) -> None:
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=2.0))
    couple = lab.line(engine, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    sent = answer_and_close(engine, this, pattern("half", 65_537))
    other.sendall(b"x")
    event = Event.CLIENT_HALF_CLOSE if culprit == "upstream" else Event.UPSTREAM_HALF_CLOSE
    assert engine.ended(couple.handler) == (event,)
    with contextlib.suppress(ConnectionResetError):
        assert len(receive_to_end(other)) == sent, "now and then its kernel has taken everything, FIN as well"
    engine.wait_gone()


@IN_TIME
@SIDES
def test_what_came_before_the_reset_is_delivered_in_a_graceful_end_as_well(lab: Lab, culprit: str) -> None:
    engine = lab.start()
    couple = lab.line(engine, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    data = pattern("drained", 65_537)
    sent = answer_and_close(engine, this, data)
    other.sendall(b"x")
    engine.wait_ticks(2)
    assert engine.close_gracefully(1) == 1
    received = receive_to_end(other)
    # Of an upstream what was received is delivered, of a client everything.
    assert received == repeated(data, sent if culprit == "client" else len(received))
    end(other)
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    engine.wait_gone()


@IN_TIME
@SIDES
def test_bytes_of_the_living_are_not_counted_once_nobody_is_there_for_them(lab: Lab, culprit: str) -> None:
    """As in a graceful end; those that were there before are."""
    engine = lab.start()
    couple = lab.line(engine, buffers=SMALL).open()
    this, other = sides(couple, culprit)
    other.sendall(b"request")
    assert receive(this, 7) == b"request"
    sent = answer_and_close(engine, this, pattern("counted", 65_537))
    other.sendall(b"x")
    engine.wait_ticks(3)
    assert push(other, b"y" * 65_537, 0) > 0
    end(other)
    receive_to_end(other)
    assert engine.ended(couple.handler) == (Event.FINISHED,)
    counts = (couple.handler.up, couple.handler.down)
    assert counts == ((sent, 8) if culprit == "client" else (8, sent))
    engine.wait_gone()
