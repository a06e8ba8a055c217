"""Graceful close: the engine ends a connection, the client first, and loses nothing of what the client sends."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from relay.engines import base
from relay.engines.contract import Dial, Event, Timeouts, Wait
from tests.engines.lab import Couple, Lab
from tests.engines.peers import Receiving, Sending, blocks, end, pattern, receive, receive_to_end, reset
from tests.engines.running import DEADLINE, RunningEngine
from tests.engines.script import Script

LONG = 600.0  # seconds; a test that waited for it would time out


@pytest.fixture(autouse=True)
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "GRACEFUL_CLOSE_TIMEOUT", LONG)


def drained(engine: RunningEngine, couple: Couple, up: int, down: int) -> None:
    """The connection has ended with DRAINED, reported once, and these bytes were counted."""
    assert engine.ended(couple.handler) == (Event.DRAINED,)
    assert (couple.handler.up, couple.handler.down) == (up, down)


def talks(couple: Couple) -> None:
    couple.client.sendall(b"ping")
    assert receive(couple.upstream, 4) == b"ping"
    couple.upstream.sendall(b"pong")
    assert receive(couple.client, 4) == b"pong"


# --- which ones ------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first_and_the_others_go_on(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(6)]
    assert engine.close_gracefully(2) == 2
    for couple in couples[:2]:
        assert receive_to_end(couple.client) == b""
    couples.append(line.open())
    for couple in couples[2:]:
        talks(couple)
    couples[0].client.close()
    assert receive_to_end(couples[0].upstream) == b""
    couples[0].upstream.close()
    drained(engine, couples[0], 0, 0)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couples[2].client) == b""
    couples[4].client.close()  # one in between ends by itself
    assert receive_to_end(couples[4].upstream) == b""
    couples[4].upstream.close()
    assert engine.ended(couples[4].handler) == (Event.FINISHED,)
    talks(couples[3])
    assert engine.close_gracefully(9) == 3
    assert engine.close_gracefully(9) == 0
    for couple in couples:
        couple.client.close()
        couple.upstream.close()
    engine.wait_gone()
    for number, couple in enumerate(couples):
        assert couple.handler.endings == [Event.FINISHED if number == 4 else Event.DRAINED]


def test_there_is_nothing_to_close(lab: Lab) -> None:
    engine = lab.start()
    assert engine.close_gracefully(5) == 0
    couple = lab.couple(engine)
    assert engine.close_gracefully(0) == 0
    assert engine.close_gracefully(-1) == 0
    talks(couple)


def test_those_that_wait_or_dial_are_left_alone(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    waiting = lab.connected(lab.listen(engine, Script(Wait())))
    dialling = lab.connected(lab.listen(engine, Script(Dial(lab.silent_port(), "", LONG))))
    handlers = [engine.handler_of(client) for client in (waiting, dialling)]
    couple = lab.couple(engine)
    assert engine.close_gracefully(3) == 1
    assert receive_to_end(couple.client) == b""
    engine.perform(handlers[0], lab.dial(server))
    upstream = lab.accepted(server)
    waiting.sendall(b"hello")
    assert receive(upstream, 5) == b"hello"
    assert not any(handler.endings for handler in handlers)
    assert engine.close_gracefully(3) == 1
    assert receive_to_end(waiting) == b""


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_a_silent_connection_ends_on_both_sides(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    talks(couple)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    couple.client.close()
    assert receive_to_end(couple.upstream) == b""
    couple.upstream.close()
    drained(engine, couple, 4, 4)
    engine.wait_gone()


@pytest.mark.parametrize("chatty", [False, True], ids=["silent", "chatty"])
def test_all_that_the_client_sends_until_it_has_seen_the_end_arrives(lab: Lab, chatty: bool) -> None:
    """Also if the upstream goes on sending, until it sees the end itself: that must not become a reset."""
    engine = lab.start()
    couple = lab.couple(engine)
    at_client, at_upstream = Receiving(couple.client), Receiving(couple.upstream)
    going_on = itertools.takewhile(lambda _: at_client.is_alive(), blocks("up", 1 << 20, 1 << 16))
    sending = Sending(couple.client, itertools.chain(going_on, blocks("last words", 8)))
    chat = itertools.takewhile(lambda _: chatty and at_upstream.is_alive(), itertools.repeat(bytes(10_000)))
    answering = Sending(couple.upstream, chat, then_end=False)
    engine.wait(lambda: at_upstream.received > 4 << 20, "bytes flow")
    assert engine.close_gracefully(1) == 1
    sending.finish()
    at_upstream.finish()
    at_client.finish()
    answering.join(DEADLINE)
    assert at_upstream.digest.digest() == sending.digest.digest()
    drained(engine, couple, sending.sent, at_client.received)


def test_what_the_upstream_has_sent_before_is_delivered(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    data = pattern("before", 50_000)
    with engine.held_still():
        couple.upstream.sendall(data)
        engine.loop.call_soon_threadsafe(engine.engine.close_gracefully, 1, Event.DRAINED)
    assert receive_to_end(couple.client) == data
    couple.upstream.sendall(b"too late")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b""
    end(couple.upstream)
    drained(engine, couple, 0, 50_000)


def test_bulk_from_the_upstream_is_cut_where_its_bytes_are_counted(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    at_client = Receiving(couple.client)
    Sending(couple.upstream, blocks("down", 1 << 10), then_end=False)
    engine.wait(lambda: at_client.received > 8 << 20, "bytes flow")
    assert engine.close_gracefully(1) == 1
    at_client.finish()
    end(couple.client)
    drained(engine, couple, 0, at_client.received)
    expected, left = hashlib.sha1(), at_client.received
    for block in blocks("down", (left >> 20) + 1):
        expected.update(block[:left])
        left -= min(left, len(block))
    assert at_client.digest.digest() == expected.digest()


def test_a_client_that_says_something_after_its_end_is_heard(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    for number in range(20):
        couple.client.sendall(number.to_bytes(2, "big"))
        assert receive(couple.upstream, 2) == number.to_bytes(2, "big")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b""
    end(couple.upstream)
    drained(engine, couple, 40, 0)


def test_an_upstream_that_does_not_end_is_not_waited_for(lab: Lab) -> None:
    """It has everything, and that is enough."""
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    couple.client.sendall(b"the last word")
    end(couple.client)
    drained(engine, couple, 13, 0)
    assert receive_to_end(couple.upstream) == b"the last word"


# --- half-closed, twice, and what else may happen meanwhile ----------------------------------------------------------


def test_the_client_had_ended(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    couple.client.sendall(b"request")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b"request"
    data = pattern("answer", 20_000)
    with engine.held_still():
        couple.upstream.sendall(data)
        engine.loop.call_soon_threadsafe(engine.engine.close_gracefully, 1, Event.DRAINED)
    assert receive_to_end(couple.client) == data
    drained(engine, couple, 7, 20_000)


def test_the_upstream_had_ended(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    couple.upstream.sendall(b"banner")
    end(couple.upstream)
    assert receive_to_end(couple.client) == b"banner"
    assert engine.close_gracefully(1) == 1
    couple.client.sendall(b"more")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b"more"
    drained(engine, couple, 4, 6)


def test_both_end_in_the_same_moment(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    with engine.held_still():
        couple.client.sendall(b"goodbye")
        end(couple.client)
        couple.upstream.sendall(b"bye")
        end(couple.upstream)
        engine.loop.call_soon_threadsafe(engine.engine.close_gracefully, 1, Event.DRAINED)
    assert receive_to_end(couple.upstream) == b"goodbye"
    assert receive_to_end(couple.client) == b"bye"
    engine.ended(couple.handler)  # finished or drained: whichever was seen first
    assert (couple.handler.up, couple.handler.down) == (7, 3)


def test_closing_gracefully_twice_is_closing_once(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    assert engine.close_gracefully(1) == 0
    assert engine.close_gracefully(1, Event.AGED) == 0
    assert receive_to_end(couple.client) == b""
    couple.client.close()
    couple.upstream.close()
    drained(engine, couple, 0, 0)


def test_the_event_is_the_one_that_was_given(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1, Event.AGED) == 1
    couple.client.close()
    couple.upstream.close()
    assert engine.ended(couple.handler) == (Event.AGED,)


def test_a_client_that_answers_with_a_reset(lab: Lab) -> None:
    """What it has sent before still goes to the upstream, which is why that sees an end and no reset."""
    engine = lab.start()
    couple = lab.couple(engine)
    couple.client.sendall(b"before")
    assert receive(couple.upstream, 6) == b"before"
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    reset(couple.client)
    drained(engine, couple, 6, 0)
    assert receive_to_end(couple.upstream) == b""


def test_an_upstream_that_resets_meanwhile(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    assert receive_to_end(couple.client) == b""
    reset(couple.upstream)
    drained(engine, couple, 0, 0)


def test_timeouts_of_silence_do_not_hold_meanwhile(lab: Lab) -> None:
    engine = lab.start(timeouts=Timeouts(idle=0.3, half_close=0.2))
    couple = lab.couple(engine)
    assert engine.close_gracefully(1) == 1
    clock = lab.start(timeouts=Timeouts(idle=0.3, half_close=0.2))
    for _ in range(3):
        assert clock.ended(lab.couple(clock).handler) == (Event.IDLE,)
    couple.client.sendall(b"still here")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b"still here"
    drained(engine, couple, 10, 0)
