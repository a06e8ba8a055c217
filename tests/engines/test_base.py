"""From accept to the first byte: refusing, waiting, answering late, and what an engine leaves behind."""

from __future__ import annotations

import gc
import socket
import weakref
from pathlib import Path

import pytest

from relay.address import Address
from relay.engines.contract import Action, Close, Event, Handler, Pump, Refuse
from tests.engines.lab import IPV4, IPV6, Lab
from tests.engines.peers import address_of, end, listening, push, receive, receive_to_reset, repeated, reset
from tests.engines.script import Script


def test_refused_client_sees_a_reset(lab: Lab, host: str) -> None:
    engine = lab.start()
    address = lab.listen(engine, Script(Refuse()), host)
    with engine.held_still():
        client = lab.connected(address)
        client.sendall(b"unread")
    assert receive_to_reset(client) == b""
    engine.wait_gone()
    assert engine.handler_of(client).events == [], "the engine forgets the handler"


def test_bytes_pass_both_ways(lab: Lab, host: str) -> None:
    engine = lab.start()
    client, upstream, handler = lab.couple(engine, host)
    client.sendall(b"up")
    assert receive(upstream, 2) == b"up"
    upstream.sendall(b"down")
    assert receive(client, 4) == b"down"
    assert engine.engine.connections == 1
    assert handler.kinds == [Event.CONNECTED]
    assert handler.link is not None


@pytest.mark.parametrize(("near", "far"), [(IPV4, IPV6), (IPV6, IPV4)], ids=["4to6", "6to4"])
def test_the_families_of_both_sides_are_independent(lab: Lab, near: str, far: str) -> None:
    engine = lab.start()
    server = lab.listening(far)
    client = lab.connected(lab.listen(engine, Script(lab.dial(server)), near))
    upstream = lab.accepted(server)
    client.sendall(b"up")
    assert receive(upstream, 2) == b"up"


def test_the_client_address_is_told_on_accept(lab: Lab, host: str) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script(), host))
    assert engine.handler_of(client).client == client.getsockname()


def test_late_answer_dials_and_delivers_what_came_meanwhile(lab: Lab, host: str) -> None:
    engine = lab.start()
    server = lab.listening(host)
    client = lab.connected(lab.listen(engine, Script(), host))
    client.sendall(b"early")
    handler = engine.handler_of(client)
    engine.wait_ticks(3)
    assert handler.events == []
    engine.perform(handler, lab.dial(server))
    upstream = lab.accepted(server)
    assert receive(upstream, 5) == b"early"
    upstream.sendall(b"answer")
    assert receive(client, 6) == b"answer"


def test_client_that_ended_while_waiting_still_gets_its_answer(lab: Lab, host: str) -> None:
    engine = lab.start()
    server = lab.listening(host)
    client = lab.connected(lab.listen(engine, Script(), host))
    client.sendall(b"request")
    end(client)
    handler = engine.handler_of(client)
    engine.wait_ticks(3)
    engine.perform(handler, lab.dial(server))
    upstream = lab.accepted(server)
    assert receive(upstream, 7) == b"request"
    assert upstream.recv(1) == b""
    upstream.sendall(b"answer")
    upstream.close()
    assert receive(client, 6) == b"answer"
    assert client.recv(1) == b""
    assert engine.ended(handler) == (Event.FINISHED,)


@pytest.mark.parametrize("action", [Refuse(), Close(True, True)], ids=["refuse", "close"])
def test_late_refusal_resets_the_client(lab: Lab, action: Action) -> None:
    engine = lab.start()
    client = lab.connected(lab.listen(engine, Script()))
    handler = engine.handler_of(client)
    engine.perform(handler, action)
    receive_to_reset(client)
    engine.wait_gone()
    assert handler.events == []
    assert handler.link is None


@pytest.mark.parametrize("action", ["dial", Refuse(), Close(), Pump(b"late")], ids=["dial", "refuse", "close", "pump"])
def test_late_answer_to_a_connection_that_is_gone_does_nothing(lab: Lab, action: Action | str) -> None:
    engine = lab.start()
    server = lab.listening()
    client = lab.connected(lab.listen(engine, Script()))
    handler = engine.handler_of(client)
    reset(client)
    engine.wait(lambda: handler.link is None, "the connection is gone")
    engine.perform(handler, lab.dial(server) if isinstance(action, str) else action)
    assert engine.engine.connections == 0
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()
    assert handler.kinds == [Event.CLIENT_RESET]


def test_first_bytes_go_before_those_of_the_client(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host, {Event.CONNECTED: Pump(b"first,")})
    client = line.client()
    client.sendall(b"then the client's")
    upstream = lab.accepted(line.upstream)
    assert receive(upstream, 23) == b"first,then the client's"
    handler = engine.handler_of(client)
    end(client)
    end(upstream)
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (17, 0), "what the client sent, and nothing else"


def test_first_bytes_are_whole_when_the_upstream_is_slow(lab: Lab) -> None:
    engine = lab.start()
    first = b"header" * 1000
    line = lab.line(engine, answers={Event.CONNECTED: Pump(first)}, buffers=65536)
    client = line.client()
    upstream = lab.accepted(line.upstream)
    sent = push(client, b"0123456789abcdef")
    assert receive(upstream, len(first) + sent) == first + repeated(b"0123456789abcdef", sent)


def test_handlers_are_forgotten_when_their_connection_is_closed(lab: Lab) -> None:
    engine = lab.start()
    client, upstream, handler = lab.couple(engine)
    reference = weakref.ref(handler)
    client.close()
    upstream.close()
    engine.ended(handler)
    engine.handlers.clear()
    del handler
    gc.disable()
    try:
        engine.wait(lambda: reference() is None, "the last reference goes without the collector")
    finally:
        gc.enable()


def test_stop_listening_serves_what_is_queued(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    with engine.held_still():
        clients = [line.client() for _ in range(150)]
        engine.loop.call_soon_threadsafe(engine.engine.stop_listening)
    for number, client in enumerate(clients):
        client.sendall(number.to_bytes(2, "big"))
    numbers = {int.from_bytes(receive(lab.accepted(line.upstream), 2), "big") for _ in clients}
    assert numbers == set(range(150))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(line.address[:2])
    assert engine.engine.connections == 150, "those that there are go on"


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_closed_engine_leaves_no_descriptor_and_no_callback(lab: Lab) -> None:
    lab.start().close()  # what is opened once per process is open now
    gc.collect()
    before = descriptors()
    engine = lab.start()
    servers = [listening(IPV4) for _ in range(2)]
    engine.listen(listening(IPV4), Script())
    dialling = Script(lab.dial(servers[0]))
    sock = listening(IPV4)
    address = address_of(sock)
    engine.listen(sock, dialling)
    clients = [lab.connected(address) for _ in range(5)]
    for client in clients:
        handler = engine.handler_of(client)
        engine.wait(lambda handler=handler: Event.CONNECTED in handler.kinds, "connected")  # type: ignore[misc]
    reference = weakref.ref(engine.engine)
    engine.close_engine()
    assert engine.engine.connections == 0
    engine.wait_turns()
    for server in (*servers, *clients):
        server.close()
    del engine.engine
    gc.collect()
    assert reference() is None, "nothing on the loop refers to it any more"
    engine.close()
    assert descriptors() == before


def test_engine_may_be_closed_while_bulk_passes(lab: Lab) -> None:
    for _ in range(10):
        engine = lab.start()
        line = lab.line(engine)
        couples = [line.open() for _ in range(4)]
        with engine.held_still():
            for client, _, _ in couples:
                push(client, bytes(65536))
            engine.loop.call_soon_threadsafe(engine.engine.tick, 0.0)
        engine.close_engine()
        engine.close()
        assert engine.errors == []


def test_a_second_listener_has_its_own_handlers(lab: Lab) -> None:
    engine = lab.start()
    seen: list[Address] = []

    def refuse(address: Address) -> tuple[Handler, Action]:
        seen.append(address)
        raise ValueError("not this one")

    first = lab.listen(engine, Script())
    sock = listening(IPV4)
    engine.listen_with(sock, refuse)
    waiting = lab.connected(first)
    receive_to_reset(lab.connected(address_of(sock)))
    assert len(seen) == 1
    assert engine.handler_of(waiting).link is not None
