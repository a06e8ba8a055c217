"""Reset: the other side sees it as a reset in every phase, never as a clean end; one event says whose it was."""

from __future__ import annotations

import contextlib
import socket

import pytest

from relay.engines.contract import Dial, Event
from tests.engines.lab import Couple, Lab, fill
from tests.engines.peers import end, pattern, receive, receive_to_reset, reset, wait_reset
from tests.engines.running import RunningEngine
from tests.engines.script import Script

SIDES = pytest.mark.parametrize("culprit", ["client", "upstream"])
EVENTS = {"client": Event.CLIENT_RESET, "upstream": Event.UPSTREAM_RESET}


def sides(couple: Couple, culprit: str) -> tuple[socket.socket, socket.socket]:
    """The side that resets, and the other one."""
    return (couple.client, couple.upstream) if culprit == "client" else (couple.upstream, couple.client)


def ended(engine: RunningEngine, couple: Couple, culprit: str) -> None:
    assert engine.ended(couple.handler) == (EVENTS[culprit],)
    engine.wait_gone()


@pytest.mark.parametrize("data", [b"", b"unread"], ids=["silent", "data"])
def test_client_resets_while_it_waits(lab: Lab, host: str, data: bytes) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(), host))
    handler = engine.handler_of(client)
    client.sendall(data)
    reset(client)
    assert engine.ended(handler) == (Event.CLIENT_RESET,)
    engine.wait_gone()


def test_client_resets_before_it_is_accepted(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    with engine.held_still():
        for _ in range(20):
            client = line.client()
            client.sendall(b"unread")
            reset(client)
    line.client().sendall(b"next")
    heard = b""
    while heard != b"next":  # those that were reset may have been dialled for
        with contextlib.suppress(ConnectionResetError):
            heard = lab.accepted(line.upstream).recv(6)
    engine.wait(lambda: engine.engine.connections == 1, "the others are gone")
    for handler in engine.handlers.values():
        if handler.link is None:
            assert handler.endings == [Event.CLIENT_RESET]


@pytest.mark.parametrize("ends_first", [False, True], ids=["open", "half-closed"])
def test_client_resets_while_the_upstream_is_dialled(lab: Lab, ends_first: bool) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(Dial(lab.silent_port(), "", 600.0))))
    handler = engine.handler_of(client)
    client.sendall(b"unread")
    if ends_first:
        end(client)
        engine.wait_ticks(2)
    reset(client)
    assert engine.ended(handler) == (Event.CLIENT_RESET,)
    engine.wait_gone()


@SIDES
def test_reset_before_any_byte(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    reset(this)
    assert receive_to_reset(other) == b""
    ended(engine, couple, culprit)


@SIDES
def test_reset_in_mid_stream(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    this.sendall(b"one way")
    assert receive(other, 7) == b"one way"
    other.sendall(b"back")
    assert receive(this, 4) == b"back"
    reset(this)
    assert receive_to_reset(other) == b""
    ended(engine, couple, culprit)


@SIDES
def test_what_was_sent_before_the_reset_is_delivered(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    data = pattern(culprit, 50_000)
    this.sendall(data)
    assert receive(other, 50_000) == data, (
        "a reset may overtake what lies in the other's receive queue: not the relay's"
    )
    reset(this)
    receive_to_reset(other)
    ended(engine, couple, culprit)
    assert couple.handler.up + couple.handler.down == 50_000


@SIDES
def test_data_and_reset_at_once_are_both_seen_by_the_engine(lab: Lab, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    this, other = sides(couple, culprit)
    with engine.held_still():
        this.sendall(b"last words")
        reset(this)
    receive_to_reset(other)
    ended(engine, couple, culprit)
    assert couple.handler.up + couple.handler.down == 10


@SIDES
def test_reader_that_is_blocked_resets(lab: Lab, host: str, culprit: str) -> None:
    """The side that does not read goes away, with data held for it."""
    engine = lab.start()
    couple = lab.line(engine, host, buffers=65536).open()
    this, other = sides(couple, culprit)
    fill(engine, other, pattern("blocked", 65_537))
    assert engine.engine.held
    reset(this)
    wait_reset(other)
    ended(engine, couple, culprit)


@SIDES
def test_sender_resets_while_its_reader_is_blocked(lab: Lab, host: str, culprit: str) -> None:
    """What was sent cannot be delivered any more: the reader must see a reset, not a clean end in the middle."""
    engine = lab.start()
    couple = lab.line(engine, host, buffers=65536).open()
    this, other = sides(couple, culprit)
    sent = fill(engine, this, pattern("held", 65_537))
    assert engine.engine.held
    reset(this)
    ended(engine, couple, culprit)
    assert len(receive_to_reset(other)) < sent


@SIDES
def test_reset_after_its_own_end(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    this.sendall(b"request")
    end(this)
    assert receive(other, 7) == b"request"
    assert other.recv(1) == b""
    reset(this)
    wait_reset(other)
    ended(engine, couple, culprit)


@SIDES
def test_reset_after_the_end_of_the_other_side(lab: Lab, host: str, culprit: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    this, other = sides(couple, culprit)
    end(other)
    assert this.recv(1) == b""
    this.sendall(b"part")
    assert receive(other, 4) == b"part"
    reset(this)
    assert receive_to_reset(other) == b""
    ended(engine, couple, culprit)


def test_both_reset_at_once_is_one_end(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(50)]
    with engine.held_still():
        for couple in couples:
            reset(couple.client)
            reset(couple.upstream)
    for couple in couples:
        (event,) = engine.ended(couple.handler)
        assert event in EVENTS.values()
    engine.wait_gone()


def test_upstream_that_resets_what_it_accepts(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    client = line.client()
    reset(lab.accepted(line.upstream))
    assert receive_to_reset(client) == b""
    handler = engine.handler_of(client)
    engine.wait(lambda: handler.link is None, "the connection has ended")
    assert handler.kinds in ([Event.CONNECTED, Event.UPSTREAM_RESET], [Event.DIAL_FAILED])


def test_client_that_closes_with_unread_data_resets_the_upstream(lab: Lab, host: str) -> None:
    """The kernel sends RST for such a close; a truncated answer must not look like an end."""
    engine = lab.start()
    couple = lab.couple(engine, host)
    couple.upstream.sendall(b"answer")
    couple.client.recv(1)
    couple.client.close()
    assert receive_to_reset(couple.upstream) == b""
    ended(engine, couple, "client")
