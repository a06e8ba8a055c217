"""Listeners that go while others stay: what is queued is served, and a queue that is shared is left to the others."""

from __future__ import annotations

import socket

import pytest

from relay.address import Address
from relay.engines.contract import Accepted
from tests.engines.lab import IPV4, Lab
from tests.engines.peers import accepted, address_of, connected, listening, receive
from tests.engines.running import DEADLINE, RunningEngine
from tests.engines.script import Script
from tests.support.observe import sent_again

QUEUED = 30  # connections


def stop(engine: RunningEngine, sock: socket.socket, way: str) -> None:
    """Stop listening there, in one of the two ways. In the engine's thread."""
    if way == "one":
        engine.engine.unlisten(sock)
    else:
        engine.engine.stop_listening()


def listen(engine: RunningEngine, script: Script, *, shared: bool = False) -> tuple[socket.socket, Address]:
    """A listening socket that is the engine's from now on, and its address."""
    sock = listening(IPV4)
    address = address_of(sock)
    engine.listen(sock, script, shared=shared)
    return sock, address


def refused(lab: Lab, address: Address) -> bool:
    client = lab.connected(address)
    try:
        client.recv(1)
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("way", ["one", "all"])
def test_what_is_queued_is_served(lab: Lab, way: str) -> None:
    engine = lab.start()
    server = lab.listening()
    sock, address = listen(engine, Script(lab.dial(server)))
    other = lab.line(engine)

    def come_and_go() -> list[socket.socket]:
        """In one turn of the engine's: nobody is accepted in between."""
        clients = [lab.connected(address) for _ in range(QUEUED)]
        stop(engine, sock, way)
        return clients

    for client in engine.call(come_and_go):
        engine.handler_of(client)
        client.sendall(b"hello")
    for _ in range(QUEUED):
        assert receive(lab.accepted(server), 5) == b"hello"
    assert refused(lab, address)
    if way == "one":
        assert other.open()
    else:
        assert refused(lab, other.address)


def test_who_begins_to_connect_is_not_answered(lab: Lab) -> None:
    """In the end the client is refused; it is never connected first and reset then."""
    engine = lab.start()
    sock, address = listen(engine, Script())
    engine.call(engine.engine.unlisten, sock)
    engine.call(engine.engine.unlisten, sock)  # does nothing
    client = lab.connected(address)
    with pytest.raises(ConnectionRefusedError):
        client.recv(1)
    assert sock.fileno() < 0
    assert not engine.handlers


@pytest.mark.parametrize("way", ["one", "all"])
def test_a_closing_listener_can_be_listened_on_again_by_another_descriptor(lab: Lab, way: str) -> None:
    """As if it had never closed: no client waits, none in the queue is lost, and the old descriptor is closed."""
    engine = lab.start()
    server = lab.listening()
    script = Script(lab.dial(server))
    accepting = engine.accepting(script)
    sock, address = listen(engine, script)
    for _ in range(3):
        kept = sock.dup()

        def come_and_go(old: socket.socket = sock, new: socket.socket = kept) -> list[socket.socket]:
            queued = [lab.connected(address) for _ in range(QUEUED)]
            stop(engine, old, way)
            engine.engine.listen(new, accepting)
            return queued + [lab.connected(address) for _ in range(QUEUED)]

        for client in engine.call(come_and_go):
            assert not sent_again(client)
            client.sendall(b"hello")
        for _ in range(2 * QUEUED):
            assert receive(lab.accepted(server), 5) == b"hello"
        assert sock.fileno() < 0
        sock = kept
    engine.call(engine.engine.unlisten, sock)
    assert refused(lab, address)


def test_the_others_go_on(lab: Lab) -> None:
    engine = lab.start()
    first, second = lab.line(engine), lab.line(engine)
    sock, address = listen(engine, Script())
    before = first.open()
    engine.call(engine.engine.unlisten, sock)
    assert refused(lab, address)
    before.client.sendall(b"x")
    assert receive(before.upstream, 1) == b"x"
    for line in (first, second):
        assert line.open()


def test_a_socket_that_is_not_listened_on_is_none_of_its_business(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    sock, _ = listen(engine, Script())
    stranger = lab.listening()
    engine.call(engine.engine.unlisten, stranger)
    engine.call(engine.engine.unlisten, sock)
    engine.call(engine.engine.unlisten, sock)
    assert line.open()
    engine.call(engine.engine.stop_listening)
    engine.call(engine.engine.unlisten, sock)
    lab.connected(address_of(stranger))
    lab.accepted(stranger)


def test_the_next_listener_may_get_the_same_number(lab: Lab) -> None:
    """A descriptor's number is given again soon; what was waited for must not be taken for the new one's."""
    engine = lab.start()
    server = lab.listening()
    accepting = engine.accepting(Script(lab.dial(server)))
    sock: socket.socket | None = listen(engine, Script(lab.dial(server)))[0]
    for _ in range(2):
        with listening(IPV4) as new:
            address = address_of(new)
            old, sock = sock, None
            assert old is not None
            engine.call(engine.engine.unlisten, old)
            while sock is None:
                sock = engine.call(_replace, engine, old, new, accepting)
        for _ in range(3):
            engine.handler_of(lab.connected(address))
            lab.accepted(server)


def _replace(
    engine: RunningEngine, old: socket.socket, new: socket.socket, accepting: Accepted
) -> socket.socket | None:
    """Once the one is closed, listen on a duplicate of the other, which most likely has the former's number."""
    if old.fileno() >= 0:
        return None
    duplicate = new.dup()
    engine.engine.listen(duplicate, accepting)
    return duplicate


@pytest.mark.parametrize("way", ["one", "all"])
def test_a_shared_queue_is_left_to_the_others(lab: Lab, way: str) -> None:
    engine = lab.start()
    sock, address = listen(engine, Script(), shared=True)
    other = sock.dup()
    other.settimeout(DEADLINE)  # and in non-blocking mode, which the two have in common

    def come_and_go() -> list[socket.socket]:
        clients = [connected(address) for _ in range(QUEUED)]
        stop(engine, sock, way)
        return clients

    clients = engine.call(come_and_go)
    clients += [connected(address) for _ in range(QUEUED)]  # the queue is not shorter than before
    with other:
        for client in clients:
            with accepted(other) as there:
                there.sendall(b"from the other")
            with client:
                assert receive(client, 14) == b"from the other"
    assert not engine.handlers


def test_several_accept_from_a_shared_queue(lab: Lab) -> None:
    engines = [lab.start(), lab.start()]
    server = lab.listening()
    first, address = listen(engines[0], Script(lab.dial(server)), shared=True)
    engines[1].listen(first.dup(), Script(lab.dial(server)), shared=True)
    clients = [lab.connected(address) for _ in range(QUEUED)]
    for _ in clients:
        lab.accepted(server)
    assert sum(len(engine.handlers) for engine in engines) == QUEUED
    engines[0].call(engines[0].engine.unlisten, first)
    served = len(engines[1].handlers)
    for _ in range(QUEUED):
        lab.connected(address)
        lab.accepted(server)
    assert len(engines[1].handlers) == served + QUEUED
