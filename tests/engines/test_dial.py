"""Dialling: failing, timing out, trying the next address, the source address, and what is told of it."""

from __future__ import annotations

import errno
from time import monotonic

import pytest

from relay.engines.contract import Close, Dial, Event
from tests.engines.lab import IPV4, Lab
from tests.engines.peers import receive, receive_to_reset, reset
from tests.engines.running import DEADLINE
from tests.engines.script import Script, in_turn


def test_refused_dial_is_told_and_the_next_address_works(lab: Lab, host: str) -> None:
    engine = lab.start()
    server = lab.listening(host)
    script = Script(Dial(lab.closed_port(host), "", DEADLINE), {Event.DIAL_FAILED: lab.dial(server)})
    client = lab.connected(lab.listen(engine, script, host))
    client.sendall(b"hello")
    assert receive(lab.accepted(server), 5) == b"hello"
    assert engine.handler_of(client).events == [(Event.DIAL_FAILED, errno.ECONNREFUSED), (Event.CONNECTED, None)]


def test_client_is_reset_when_no_address_is_left(lab: Lab, host: str) -> None:
    engine = lab.start()
    again = Dial(lab.closed_port(host), "", DEADLINE)
    script = Script(again, {Event.DIAL_FAILED: in_turn(again, again, Close(True, True))})
    client = lab.connected(lab.listen(engine, script, host))
    receive_to_reset(client)
    assert engine.handler_of(client).events == [(Event.DIAL_FAILED, errno.ECONNREFUSED)] * 3
    engine.wait_gone()


def test_dial_that_nobody_answers_times_out_and_the_next_address_works(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    began: list[float] = []
    ended: list[float] = []

    def next_address(_handler: object, _value: object) -> Dial:
        ended.append(monotonic())
        return lab.dial(server)

    client = lab.connected(lab.listen(engine, Script(answers={Event.DIAL_TIMEOUT: next_address})))
    client.sendall(b"hello")
    handler = engine.handler_of(client)
    silent = Dial(lab.silent_port(), "", 0.4)
    began.append(monotonic())
    engine.perform(handler, silent)
    assert receive(lab.accepted(server), 5) == b"hello"
    assert handler.events == [(Event.DIAL_TIMEOUT, None), (Event.CONNECTED, None)]
    assert ended[0] - began[0] >= 0.4


def test_client_that_resets_while_nobody_answers_is_gone_at_once(lab: Lab) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(Dial(lab.silent_port(), "", 600.0))))
    handler = engine.handler_of(client)
    reset(client)
    assert engine.ended(handler) == (Event.CLIENT_RESET,)
    engine.wait_gone()


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.77"])
def test_dial_comes_from_the_source_address_asked_for(lab: Lab, source: str) -> None:
    engine = lab.start(report_source=True)
    server = lab.listening()
    client = lab.connected(lab.listen(engine, Script(lab.dial(server, source))))
    upstream = lab.accepted(server)
    address = upstream.getpeername()
    assert address[0] == source
    handler = engine.handler_of(client)
    engine.wait(lambda: handler.events, "connected")
    assert handler.events == [(Event.CONNECTED, address)]


def test_ipv6_dial_comes_from_the_source_address_asked_for(lab: Lab, host: str) -> None:
    engine = lab.start()
    server = lab.listening(host)
    lab.connected(lab.listen(engine, Script(lab.dial(server, host)), host))
    assert lab.accepted(server).getpeername()[0] == host


def test_source_is_reported_when_asked_for(lab: Lab, host: str) -> None:
    engine = lab.start(report_source=True)
    _, upstream, handler = lab.couple(engine, host)
    engine.wait(lambda: handler.events, "connected")
    assert handler.events == [(Event.CONNECTED, upstream.getpeername())]


def test_source_address_that_is_not_ours_is_a_failed_dial(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    script = Script(lab.dial(server, "192.0.2.1"), {Event.DIAL_FAILED: lab.dial(server)})
    client = lab.connected(lab.listen(engine, script))
    lab.accepted(server)
    assert engine.handler_of(client).events[0] == (Event.DIAL_FAILED, errno.EADDRNOTAVAIL)


def test_upstream_that_speaks_first_is_heard(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    with engine.held_still():
        clients = [line.client() for _ in range(20)]
    for _ in clients:
        lab.accepted(line.upstream).sendall(b"220 ready")
    for client in clients:
        assert receive(client, 9) == b"220 ready"


def test_many_dials_fail_while_others_succeed(lab: Lab) -> None:
    engine = lab.start()
    server = lab.listening()
    good = lab.listen(engine, Script(lab.dial(server)))
    bad = lab.listen(engine, Script(Dial(lab.closed_port(IPV4), "", DEADLINE)))
    with engine.held_still():
        clients = [lab.connected(bad if number % 2 else good) for number in range(100)]
    for number, client in enumerate(clients):
        if number % 2:
            receive_to_reset(client)
        else:
            client.sendall(b"x")
    for _ in range(50):
        assert receive(lab.accepted(server), 1) == b"x"
    engine.wait(lambda: engine.engine.connections == 50, "the refused ones are gone")
