"""Sniffing: a handler sees what a client sends before anything is dialled, and the upstream gets every byte of it."""

from __future__ import annotations

import pytest

from relay.engines.contract import Action, Dial, Event, Pump, Refuse, Sniff, Wait
from tests.engines.lab import Lab
from tests.engines.peers import (
    end,
    pattern,
    receive,
    receive_to_end,
    receive_to_reset,
    reset,
)
from tests.engines.running import RunningEngine
from tests.engines.script import Script, ScriptedHandler

LIMIT = 4096
NEVER = 0.0  # no timeout


def until(size: int, then: Action) -> Script:
    """Sniff until so many bytes are there, then act; what was sniffed goes first."""
    seen: list[bytes] = []

    def sniffed(_handler: ScriptedHandler, value: object) -> Action:
        assert isinstance(value, bytes)
        seen[:] = [value]
        return then if len(value) >= size else Sniff(LIMIT, NEVER)

    def connected(_handler: ScriptedHandler, _value: object) -> Action:
        return Pump(b"".join(seen))

    return Script(Sniff(LIMIT, NEVER), {Event.SNIFFED: sniffed, Event.SNIFF_ENDED: sniffed, Event.CONNECTED: connected})


def test_what_was_sniffed_is_passed_on_untouched(lab: Lab, host: str) -> None:
    engine = lab.start()
    server = lab.listening(host)
    client = lab.connected(lab.listen(engine, until(5, lab.dial(server)), host))
    client.sendall(b"hello and more")
    upstream = lab.accepted(server)
    assert receive(upstream, 14) == b"hello and more"
    upstream.sendall(b"welcome")
    assert receive(client, 7) == b"welcome"
    client.sendall(b"and on")
    assert receive(upstream, 6) == b"and on"
    end(client)
    assert receive_to_end(upstream) == b""
    upstream.close()
    handler = engine.handler_of(client)
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (20, 7)


def test_byte_by_byte(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    client = lab.connected(lab.listen(engine, until(40, lab.dial(server))))
    data = pattern("bytes", 100)
    handler = engine.handler_of(client)
    for number in range(40):
        client.sendall(data[number : number + 1])
        engine.wait(lambda number=number: len(handler.events) > number, "that byte is sniffed")  # type: ignore[misc]
    values = [value for event, value in handler.events if event is Event.SNIFFED]
    assert values == [data[: number + 1] for number in range(40)]
    upstream = lab.accepted(server)
    client.sendall(data[40:])
    assert receive(upstream, 100) == data


def test_no_more_than_the_limit_is_taken(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    client = lab.connected(lab.listen(engine, until(LIMIT, lab.dial(server))))
    data = pattern("limit", 5 * LIMIT)
    client.sendall(data)
    upstream = lab.accepted(server)
    assert receive(upstream, len(data)) == data
    values = [value for event, value in engine.handler_of(client).events if event is Event.SNIFFED]
    assert values[-1] == data[:LIMIT]


def test_client_that_sends_and_ends_while_it_is_sniffed(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    dial = lab.dial(server)
    script = until(1000, dial)
    seen: list[object] = []

    def ended(_handler: ScriptedHandler, value: object) -> Action:
        seen.append(value)
        return dial

    answers = {**script.answers, Event.SNIFF_ENDED: ended}
    answers[Event.CONNECTED] = lambda _handler, _value: Pump(bytes(seen[0]))  # type: ignore[call-overload]
    client = lab.connected(lab.listen(engine, Script(script.first, answers)))
    client.sendall(b"all there is")
    end(client)
    upstream = lab.accepted(server)
    assert receive_to_end(upstream) == b"all there is"
    upstream.sendall(b"answer")
    upstream.close()
    assert receive_to_end(client) == b"answer"
    assert engine.ended(engine.handler_of(client)) == (Event.FINISHED,)


def test_client_that_resets_while_it_is_sniffed(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, until(1000, Wait())))
    handler = engine.handler_of(client)
    client.sendall(b"a bit")
    engine.wait(lambda: handler.events, "sniffed")
    reset(client)
    assert engine.ended(handler) == (Event.CLIENT_RESET,)
    assert handler.up == 5


def _told_of_timeout(engine: RunningEngine, handler: ScriptedHandler) -> bytes:
    engine.wait(lambda: Event.SNIFF_TIMEOUT in handler.kinds, "the timeout")
    value = dict(handler.events)[Event.SNIFF_TIMEOUT]
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("sent", [b"", b"a bit"], ids=["silent", "slow"])
def test_sniffing_has_a_deadline(lab: Lab, sent: bytes) -> None:
    engine = lab.start()
    more = Sniff(LIMIT, 0.3)
    client = lab.connected(lab.listen(engine, Script(more, {Event.SNIFFED: more})))
    client.sendall(sent)
    assert _told_of_timeout(engine, engine.handler_of(client)) == sent
    receive_to_reset(client)
    engine.wait_gone()


def test_after_a_timeout_the_connection_can_go_on(lab: Lab) -> None:
    """Who knows nothing of the client by then may still have somewhere to send it."""
    engine = lab.start()
    server = lab.listening()
    script = Script(Sniff(LIMIT, 0.2), {Event.SNIFF_TIMEOUT: lab.dial(server)})
    client = lab.connected(lab.listen(engine, script))
    upstream = lab.accepted(server)
    upstream.sendall(b"I speak first")
    assert receive(client, 13) == b"I speak first"
    client.sendall(b"I see")
    assert receive(upstream, 5) == b"I see"


def test_refused_for_what_it_said(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(Sniff(LIMIT, NEVER), {Event.SNIFFED: Refuse()})))
    client.sendall(b"nonsense")
    receive_to_reset(client)
    engine.wait_gone()


def test_the_dial_after_sniffing_may_fail_and_go_elsewhere(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    script = until(5, Dial(lab.closed_port(), "", 5.0))
    answers = {**script.answers, Event.DIAL_FAILED: lab.dial(server)}
    client = lab.connected(lab.listen(engine, Script(script.first, answers)))
    client.sendall(b"hello")
    assert receive(lab.accepted(server), 5) == b"hello"


def test_stop_while_sniffing(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, until(5, Wait())))
    handler = engine.handler_of(client)
    engine.call(engine.engine.stop)
    assert engine.ended(handler) == (Event.STOP,)
