"""Preread: a handler sees what a client sends before anything is dialled; the upstream gets every byte of it."""

from __future__ import annotations

import pytest

from relay.engines.contract import Action, Dial, Event, Preread, Pump, Refuse, Wait
from relay.engines.preread import SHARE
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
    """Preread until `size` bytes have come, then act; what was preread goes first."""
    seen: list[bytes] = []

    def preread(_handler: ScriptedHandler, value: object) -> Action:
        assert isinstance(value, bytes)
        seen[:] = [value]
        return then if len(value) >= size else Preread(LIMIT, NEVER)

    def connected(_handler: ScriptedHandler, _value: object) -> Action:
        return Pump(b"".join(seen))

    return Script(
        Preread(LIMIT, NEVER), {Event.PREREAD: preread, Event.PREREAD_ENDED: preread, Event.CONNECTED: connected}
    )


def test_what_was_preread_is_passed_on_untouched(lab: Lab, host: str) -> None:
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
        engine.wait(lambda number=number: len(handler.events) > number, "that byte is preread")  # type: ignore[misc]
    values = [value for event, value in handler.events if event is Event.PREREAD]
    assert values == [data[: number + 1] for number in range(40)]
    upstream = lab.accepted(server)
    client.sendall(data[40:])
    assert receive(upstream, 100) == data


def test_nobody_is_told_before_enough_has_come(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    script = until(5, lab.dial(server))
    client = lab.connected(lab.listen(engine, Script(Preread(LIMIT, NEVER, least=5), script.answers)))
    handler = engine.handler_of(client)
    for number in range(4):
        client.sendall(b"hello"[number : number + 1])
        engine.wait(lambda number=number: engine.engine.held == number + 1, "that byte is held")  # type: ignore[misc]
    assert not handler.events
    client.sendall(b"o and more")
    upstream = lab.accepted(server)
    assert receive(upstream, 14) == b"hello and more"
    assert [event for event, _ in handler.events].count(Event.PREREAD) == 1
    assert engine.call(lambda: engine.engine.held) == 0


def test_what_is_short_of_enough_at_the_end_or_the_limit_is_told(lab: Lab) -> None:
    engine = lab.start()
    script = Script(Preread(LIMIT, NEVER, least=LIMIT + 1), {Event.PREREAD: Refuse(), Event.PREREAD_ENDED: Refuse()})
    address = lab.listen(engine, script)
    for data, event in ((b"half", Event.PREREAD_ENDED), (bytes(LIMIT), Event.PREREAD)):
        client = lab.connected(address)
        handler = engine.handler_of(client)
        client.sendall(data)
        if len(data) < LIMIT:
            end(client)
        receive_to_reset(client)
        assert handler.events[-1] == (event, data)
    engine.wait_gone()


def test_of_too_many_that_are_not_whole_the_oldest_go(lab: Lab) -> None:
    """Partial prereads take a quarter of `held_limit` and no more; whole ones are served meanwhile."""
    engine = lab.start(held_limit=SHARE * 10 * LIMIT)
    server = lab.listening()
    script = until(LIMIT, lab.dial(server))
    slow = lab.listen(engine, Script(Preread(LIMIT, NEVER), {**script.answers, Event.PREREAD_TIMEOUT: Refuse()}))
    quick = lab.line(engine)
    clients = []
    for number in range(30):
        client = lab.connected(slow)
        handler = engine.handler_of(client)
        client.sendall(bytes(LIMIT - 1))
        engine.wait(lambda handler=handler: handler.events, "it is preread")  # type: ignore[misc]
        clients.append(client)
        assert engine.call(lambda: engine.engine.held) <= 10 * LIMIT
        if number % 10 == 0:
            assert quick.open()
    for client in clients[:20]:
        receive_to_reset(client)
    for client in clients[20:]:
        client.sendall(b"x")
        assert receive(lab.accepted(server), LIMIT) == bytes(LIMIT - 1) + b"x"
    engine.wait(lambda: engine.engine.held == 0, "nothing is held")


def test_no_more_than_the_limit_is_taken(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    client = lab.connected(lab.listen(engine, until(LIMIT, lab.dial(server))))
    data = pattern("limit", 5 * LIMIT)
    client.sendall(data)
    upstream = lab.accepted(server)
    assert receive(upstream, len(data)) == data
    values = [value for event, value in engine.handler_of(client).events if event is Event.PREREAD]
    assert values[-1] == data[:LIMIT]


def test_client_that_sends_and_ends_during_the_preread(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    dial = lab.dial(server)
    script = until(1000, dial)
    seen: list[object] = []

    def ended(_handler: ScriptedHandler, value: object) -> Action:
        seen.append(value)
        return dial

    answers = {**script.answers, Event.PREREAD_ENDED: ended}
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


def test_client_that_resets_during_the_preread(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, until(1000, Wait())))
    handler = engine.handler_of(client)
    client.sendall(b"a bit")
    engine.wait(lambda: handler.events, "preread")
    reset(client)
    assert engine.ended(handler) == (Event.CLIENT_RESET,)
    assert handler.up == 5


def _told_of_timeout(engine: RunningEngine, handler: ScriptedHandler) -> bytes:
    engine.wait(lambda: Event.PREREAD_TIMEOUT in handler.kinds, "the timeout")
    value = dict(handler.events)[Event.PREREAD_TIMEOUT]
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("sent", [b"", b"a bit"], ids=["silent", "slow"])
def test_a_preread_has_a_deadline(lab: Lab, sent: bytes) -> None:
    engine = lab.start()
    more = Preread(LIMIT, 0.3)
    client = lab.connected(lab.listen(engine, Script(more, {Event.PREREAD: more})))
    client.sendall(sent)
    assert _told_of_timeout(engine, engine.handler_of(client)) == sent
    receive_to_reset(client)
    engine.wait_gone()


def test_after_a_timeout_the_connection_can_go_on(lab: Lab) -> None:
    """A handler may dial although the client has sent nothing."""
    engine = lab.start()
    server = lab.listening()
    script = Script(Preread(LIMIT, 0.2), {Event.PREREAD_TIMEOUT: lab.dial(server)})
    client = lab.connected(lab.listen(engine, script))
    upstream = lab.accepted(server)
    upstream.sendall(b"I speak first")
    assert receive(client, 13) == b"I speak first"
    client.sendall(b"I see")
    assert receive(upstream, 5) == b"I see"


def test_refused_for_what_it_said(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(Preread(LIMIT, NEVER), {Event.PREREAD: Refuse()})))
    client.sendall(b"nonsense")
    receive_to_reset(client)
    engine.wait_gone()


def test_the_dial_after_a_preread_may_fail_and_go_elsewhere(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    script = until(5, Dial(lab.closed_port(), "", 5.0))
    answers = {**script.answers, Event.DIAL_FAILED: lab.dial(server)}
    client = lab.connected(lab.listen(engine, Script(script.first, answers)))
    client.sendall(b"hello")
    assert receive(lab.accepted(server), 5) == b"hello"


def test_stop_during_a_preread(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, until(5, Wait())))
    handler = engine.handler_of(client)
    engine.call(engine.engine.stop)
    assert engine.ended(handler) == (Event.STOP,)
