"""Every byte arrives, once and in order: long streams, single bytes, sizes around the buffers, and many at once."""

from __future__ import annotations

import contextlib
import random
import select
import socket

import pytest

from relay.engines.contract import Event
from tests.engines.lab import Lab
from tests.engines.peers import Receiving, Sending, blocks, end, pattern, receive, receive_to_end
from tests.engines.running import DEADLINE

GIBIBYTE = 1024  # blocks
SIZES = (1, 2, 1460, 4095, 4096, 65535, 65536, 65537, 131071, 131072, 131073, 1048576)


@pytest.mark.timeout(180)
def test_a_gibibyte_each_way_at_the_same_time(lab: Lab) -> None:
    engine = lab.start()
    client, upstream, handler = lab.couple(engine)
    at_upstream, at_client = Receiving(upstream), Receiving(client)
    up = Sending(client, blocks("up", GIBIBYTE))
    down = Sending(upstream, blocks("down", GIBIBYTE))
    for thread in (up, down, at_upstream, at_client):
        thread.finish()
    assert at_upstream.digest.digest() == up.digest.digest()
    assert at_client.digest.digest() == down.digest.digest()
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (GIBIBYTE << 20, GIBIBYTE << 20)


def test_one_byte_at_a_time(lab: Lab, host: str) -> None:
    engine = lab.start()
    client, upstream, handler = lab.couple(engine, host)
    up, down = pattern("up", 3000), pattern("down", 3000)
    sending = [Sending(client, iter_bytes(up)), Sending(upstream, iter_bytes(down))]
    assert receive_to_end(upstream) == up
    assert receive_to_end(client) == down
    for thread in sending:
        thread.finish()
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (3000, 3000)


def iter_bytes(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def test_one_byte_back_and_forth(lab: Lab, host: str) -> None:
    engine = lab.start()
    client, upstream, handler = lab.couple(engine, host)
    for number in range(2000):
        byte = bytes([number & 255])
        client.sendall(byte)
        assert upstream.recv(2) == byte
        upstream.sendall(byte)
        assert client.recv(2) == byte
    end(client)
    end(upstream)
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (2000, 2000)


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_sizes_around_the_buffers(lab: Lab, size: int) -> None:
    engine = lab.start()
    client, upstream, _ = lab.couple(engine)
    for number in range(8):
        data = pattern((size, number), size)
        there = Sending(client, [data], then_end=False)
        assert receive(upstream, size) == data
        back = Sending(upstream, [data[::-1]], then_end=False)
        assert receive(client, size) == data[::-1]
        there.finish()
        back.finish()


def test_messages_that_come_while_the_engine_is_busy(lab: Lab) -> None:
    """They pile up in the receive queue, and one read takes several, or a part of one."""
    engine = lab.start()
    client, upstream, _ = lab.couple(engine)
    sizes = random.Random(7)
    for round_number in range(60):
        data = pattern(round_number, sizes.randrange(1, 60_000))
        with engine.held_still():
            client.sendall(data[: len(data) // 2])
            client.sendall(data[len(data) // 2 :])
        assert receive(upstream, len(data)) == data


def test_two_hundred_connections_at_once_do_not_mix(lab: Lab) -> None:
    """Each has its own bytes in both directions, of its own length, and all pass together."""
    engine = lab.start()
    line = lab.line(engine)
    sizes = random.Random(1)
    couples = [line.open() for _ in range(200)]
    flows: list[Flow] = []
    for number, couple in enumerate(couples):
        up = pattern(("up", number), sizes.randrange(200_000))
        down = pattern(("down", number), sizes.randrange(200_000))
        flows.append(Flow(couple.client, couple.upstream, up))
        flows.append(Flow(couple.upstream, couple.client, down))
    with engine.held_still():
        for flow in flows:
            flow.send()
    while unfinished := [flow for flow in flows if not flow.finished]:
        socks = [flow.target for flow in unfinished]
        assert select.select(socks, [], [], DEADLINE)[0], f"{len(unfinished)} streams are stuck"
        for flow in unfinished:
            flow.send()
            flow.receive()
    for couple in couples:
        assert engine.ended(couple.handler) == (Event.FINISHED,)
    engine.wait_gone()


class Flow:
    """One direction of one connection, moved as far as it goes without waiting."""

    def __init__(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        self.target = target
        self.finished = False
        self._source = source
        self._data = data
        self._sent = 0
        self._ended = False
        self._received = bytearray()
        source.setblocking(False)

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._sent < len(self._data):
                self._sent += self._source.send(self._data[self._sent :])
            if not self._ended:
                self._ended = True
                end(self._source)

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := self.target.recv(65536):
                self._received += part
            assert self._received == self._data
            self.finished = True
