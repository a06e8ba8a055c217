"""Stopping: every connection is told STOP, in whichever phase it is, and its answer is carried out."""

from __future__ import annotations

import pytest

from relay.engines.contract import Close, Dial, Event
from tests.engines.lab import Lab, fill
from tests.engines.peers import end, pattern, receive, receive_to_end, receive_to_reset
from tests.engines.script import Script

CUT = Close(True, True)


def test_stop_while_waiting(lab: Lab, host: str) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(answers={Event.STOP: CUT}), host))
    handler = engine.handler_of(client)
    engine.call(engine.engine.stop)
    receive_to_reset(client)
    assert engine.ended(handler) == (Event.STOP,)
    engine.wait_gone()


def test_stop_while_dialling(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(Dial(lab.silent_port(), "", 600.0), {Event.STOP: CUT})))
    handler = engine.handler_of(client)
    engine.call(engine.engine.stop)
    receive_to_reset(client)
    assert engine.ended(handler) == (Event.STOP,)
    engine.wait_gone()


def test_stop_while_bytes_flow_delivers_what_was_received_and_ends(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    data = pattern("stop", 50_000)
    couple.client.sendall(data)
    couple.upstream.sendall(data)
    handler = couple.handler
    assert receive(couple.upstream, 1) + receive(couple.client, 1) == data[:1] * 2, "the engine has received it"
    engine.wait_turns()
    engine.call(engine.engine.stop)
    assert receive_to_end(couple.upstream) == data[1:]
    assert receive_to_end(couple.client) == data[1:]
    assert engine.ended(handler) == (Event.STOP,)
    assert (handler.up, handler.down) == (50_000, 50_000)
    engine.wait_gone()


def test_stop_with_a_reset_as_the_answer(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.line(engine, answers={Event.STOP: CUT}).open()
    engine.call(engine.engine.stop)
    receive_to_reset(couple.client)
    receive_to_reset(couple.upstream)
    assert engine.ended(couple.handler) == (Event.STOP,)


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_stop_while_half_closed(lab: Lab, first: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    ending, other = (couple.client, couple.upstream) if first == "client" else (couple.upstream, couple.client)
    end(ending)
    assert other.recv(1) == b""
    engine.call(engine.engine.stop)
    assert receive_to_end(ending) == b""
    assert engine.ended(couple.handler) == (Event.STOP,)
    engine.wait_gone()


def test_stop_with_bytes_held_for_a_reader_that_does_not_read(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.line(engine, buffers=65536).open()
    fill(engine, couple.client, pattern("blocked", 100_003))
    assert engine.engine.held
    engine.call(engine.engine.stop)
    assert engine.ended(couple.handler) == (Event.STOP,)
    engine.wait_gone()


def test_stop_leaves_the_listeners(lab: Lab) -> None:
    """Whoever wants no more connections calls stop_listening before."""
    engine = lab.start()
    line = lab.line(engine)
    before = line.open()
    engine.call(engine.engine.stop)
    assert engine.ended(before.handler) == (Event.STOP,)
    after = line.open()
    after.client.sendall(b"x")
    assert receive(after.upstream, 1) == b"x"


def test_everyone_is_told_once(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(100)]
    waiting_at = lab.listen(engine, Script(answers={Event.STOP: CUT}))
    waiting = [engine.handler_of(lab.connected(waiting_at)) for _ in range(20)]
    engine.close_engine()
    for handler in (*waiting, *(couple.handler for couple in couples)):
        assert handler.endings == [Event.STOP]
        assert handler.link is None
    for couple in couples:
        assert receive_to_end(couple.client) == b""
        assert receive_to_end(couple.upstream) == b""
