"""A handler that raises: its connection ends with a reset and a traceback in the log, and the others go on."""

from __future__ import annotations

import logging

import pytest

from relay.engines.contract import Action, Close, Dial, Event, Timeouts, Wait
from tests.engines.lab import Couple, Lab
from tests.engines.peers import address_of, end, listening, receive, receive_to_reset, reset
from tests.engines.script import Script, ScriptedHandler


class Bug(Exception):
    """What the handlers here raise."""


def fail(_handler: ScriptedHandler, _value: object) -> Action:
    raise Bug("from advance")


def fail_to_count(_handler: ScriptedHandler) -> None:
    raise Bug("from moved")


ALWAYS = dict.fromkeys(Event, fail)


def echo(couple: Couple) -> None:
    couple.client.sendall(b"ping")
    assert receive(couple.upstream, 4) == b"ping"
    couple.upstream.sendall(b"pong")
    assert receive(couple.client, 4) == b"pong"


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """How many of the records have the handler's exception with them."""
    return sum(bool(record.exc_info and record.exc_info[0] is Bug) for record in caplog.records)


@pytest.fixture(autouse=True)
def _errors_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def test_exception_at_connected(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    line = lab.line(engine, answers={Event.CONNECTED: fail})
    client = line.client()
    receive_to_reset(lab.accepted(line.upstream))
    receive_to_reset(client)
    assert engine.ended(engine.handler_of(client)) == (Event.DEFECT,)
    assert tracebacks(caplog) == 1
    echo(good)
    assert engine.engine.connections == 1


def test_exception_while_a_connection_is_set_up(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    closed = Dial(lab.closed_port(), "", 5.0)
    client = lab.connected(lab.listen(engine, Script(closed, {Event.DIAL_FAILED: fail})))
    receive_to_reset(client)
    assert engine.ended(engine.handler_of(client)) == (Event.DEFECT,)
    assert tracebacks(caplog) == 1
    echo(good)


def test_exception_at_the_end(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    couple = lab.line(engine, answers={Event.CLIENT_RESET: fail}).open()
    reset(couple.client)
    receive_to_reset(couple.upstream)
    engine.wait(lambda: couple.handler.link is None, "the connection is closed")
    assert couple.handler.kinds[-1] is Event.DEFECT
    assert tracebacks(caplog) == 1
    echo(good)


def test_handlers_that_always_raise_do_not_cost_others_their_events(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Everything happens in one turn of the engine's, and the good ones are heard all the same."""
    engine = lab.start()
    good_line = lab.line(engine)
    bad_line = lab.line(engine, answers={event: fail for event in Event if event is not Event.CONNECTED})
    good, bad = [], []
    for _ in range(30):
        good.append(good_line.open())
        bad.append(bad_line.open())
    with engine.held_still():
        for one, other in zip(good, bad, strict=True):
            reset(other.client)
            one.client.sendall(b"ping")
    for couple in good:
        assert receive(couple.upstream, 4) == b"ping"
    for couple in bad:
        receive_to_reset(couple.upstream)
    engine.wait(lambda: engine.engine.connections == len(good), "the bad ones are closed")
    assert tracebacks(caplog) >= len(bad)
    for couple in good:
        echo(couple)


def test_exception_at_a_dial_timeout(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    silent = lab.silent_port()
    at = lab.listen(engine, Script(Dial(silent, "", 0.1), ALWAYS))
    clients = [lab.connected(at) for _ in range(3)]
    for client in clients:
        receive_to_reset(client)
    engine.wait(lambda: engine.engine.connections == 1, "all three are closed")
    assert tracebacks(caplog) >= 3
    echo(good)


def test_exception_at_a_timeout(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start(timeouts=Timeouts(idle=0.4, half_close=0.0))
    bad = [lab.line(engine, answers={Event.IDLE: fail, Event.DEFECT: fail}).open() for _ in range(3)]
    good = lab.couple(engine)
    for couple in (*bad, good):
        receive_to_reset(couple.client)
    assert engine.ended(good.handler) == (Event.IDLE,)
    engine.wait_gone()
    assert tracebacks(caplog) >= 3


def test_exception_while_bytes_are_counted(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    server = lab.listening()
    script = Script(lab.dial(server), on_moved=fail_to_count)
    client = lab.connected(lab.listen(engine, script))
    upstream = lab.accepted(server)
    client.sendall(b"ping")
    assert receive(upstream, 4) == b"ping"
    end(client)
    end(upstream)
    handler = engine.handler_of(client)
    engine.wait(lambda: handler.link is None, "the connection is closed")
    assert tracebacks(caplog) >= 1
    echo(good)


def test_exception_in_a_late_answer(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The dial that `perform` begins fails at once, and the handler fails with it."""
    engine = lab.start()
    server = lab.listening()
    client = lab.connected(lab.listen(engine, Script(answers={Event.DIAL_FAILED: fail})))
    handler = engine.handler_of(client)
    engine.perform(handler, lab.dial(server, "192.0.2.1"))
    receive_to_reset(client)
    assert engine.ended(handler) == (Event.DEFECT,)
    assert tracebacks(caplog) == 1


def test_exception_at_stop_leaves_nobody_out(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    bad_line = lab.line(engine, answers={Event.STOP: fail, Event.DEFECT: fail})
    good_line = lab.line(engine)
    bad, good = [], []
    for _ in range(5):
        bad.append(bad_line.open())
        good.append(good_line.open())
    engine.close_engine()
    assert engine.engine.connections == 0
    for couple in good:
        assert couple.handler.endings == [Event.STOP]
    for couple in bad:
        receive_to_reset(couple.client)
        assert couple.handler.link is None
    assert tracebacks(caplog) >= 5


def test_exception_at_accept(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = lab.start()
    good = lab.couple(engine)
    sock = listening("127.0.0.1")
    address = address_of(sock)

    def accepted(_address: object) -> tuple[ScriptedHandler, Action]:
        raise Bug("from accepted")

    engine.listen_with(sock, accepted)
    for _ in range(3):
        receive_to_reset(lab.connected(address))
    assert tracebacks(caplog) == 3
    echo(good)


def test_answer_that_is_no_action(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine, answers={Event.CONNECTED: lambda _handler, _value: None})  # type: ignore[dict-item, return-value]
    client = line.client()
    receive_to_reset(client)
    assert engine.ended(engine.handler_of(client)) == (Event.DEFECT,)


def test_closing_another_connection_from_within_an_event(lab: Lab) -> None:
    """A place that becomes free is given to a connection that waits: its dial begins inside the other's last event."""
    engine = lab.start()
    server = lab.listening()
    waiting_at = lab.listen(engine, Script(Wait()))
    waiting = [lab.connected(waiting_at) for _ in range(10)]
    handlers = [engine.handler_of(client) for client in waiting]
    queue = list(handlers)

    def give_on(_handler: ScriptedHandler, _value: object) -> Action:
        engine.engine.perform(queue.pop(), lab.dial(server))
        return Close(False, True)

    line = lab.line(engine, answers={Event.CLIENT_RESET: give_on})
    couples = [line.open() for _ in range(10)]
    with engine.held_still():
        for couple in couples:
            reset(couple.client)
        late = [lab.connected(waiting_at) for _ in range(10)]
    for couple in couples:
        assert engine.ended(couple.handler) == (Event.CLIENT_RESET,)
    for _ in waiting:
        lab.accepted(server).sendall(b"served")
    for client in waiting:
        assert receive(client, 6) == b"served"
    for client in late:
        assert engine.handler_of(client).events == []
