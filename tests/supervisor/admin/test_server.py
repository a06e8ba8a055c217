"""The front of both HTTP ports: who is waited for, who makes room, and what happens when the machine runs short."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from relay.supervisor.admin import server
from relay.supervisor.admin.connection import Limits
from relay.supervisor.admin.server import HttpServer

LIMITS = Limits(connections=4, silent_per_source=3, request=30.0, answer=30.0, idle=30.0, proxy=False)
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 8 << 20  # bytes of an answer that no kernel holds
PATIENCE = 10.0  # seconds

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A server on loopback, its clients, and a gate that requests for /gate wait at."""

    def __init__(self, server: HttpServer, address: tuple[str, int], gate: asyncio.Event) -> None:
        self.server = server
        self.gate = gate
        self.address = address
        self._clients: list[Client] = []

    async def connect(self, data: bytes = b"", source: str = "127.0.0.1") -> Client:
        client = await asyncio.open_connection(*self.address, local_addr=(source, 0))
        self._clients.append(client)
        client[1].write(data)
        return client

    async def count(self, wanted: int) -> None:
        """Wait until the server has so many connections."""
        await until(lambda: len(self.server) == wanted)

    async def close(self) -> None:
        for _, writer in self._clients:
            writer.transport.abort()
        await self.server.stop()


@contextlib.asynccontextmanager
async def serving(listening: socket.socket | None = None, **changes: object) -> AsyncIterator[Port]:
    gate = asyncio.Event()

    async def small(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def large(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(LARGE))

    async def wait(_request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/", small)
    app.router.add_get("/large", large)
    app.router.add_get("/gate", wait)
    sock = listening or socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    server = HttpServer(app, sock, dataclasses.replace(LIMITS, **changes), "test")  # type: ignore[arg-type]
    await server.start()
    port = Port(server, sock.getsockname(), gate)
    try:
        yield port
    finally:
        gate.set()
        await port.close()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LEAST", 1)
    monkeypatch.setattr(server, "SWEEP", 0.02)
    monkeypatch.setattr(server, "FULL", 0.02)
    monkeypatch.setattr(server, "SHORT", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what the server has done is not told by any event
            await asyncio.sleep(0.005)


async def drip(client: Client, byte: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            client[1].write(byte)
            await client[1].drain()
            await asyncio.sleep(0.01)


async def answered(client: Client, status: int = 200) -> None:
    async with asyncio.timeout(PATIENCE):
        head = await client[0].readuntil(b"\r\n\r\n")
        assert head.split()[1] == str(status).encode(), head
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        await client[0].readexactly(length)


async def ended(client: Client) -> None:
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await client[0].read(1 << 16):
                pass


async def ask(client: Client, data: bytes = ASK) -> None:
    client[1].write(data)
    await answered(client)


async def test_the_oldest_that_has_asked_nothing_makes_room() -> None:
    async with serving(silent_per_source=9) as port:
        clients = [await port.connect() for _ in range(4)]
        await port.count(4)
        await ask(clients[0])  # the oldest of all has asked
        newest = await port.connect()
        await ended(clients[1])
        await ask(newest)
        for client in (clients[0], clients[2], clients[3]):
            await ask(client)


async def test_a_source_makes_room_for_itself_first() -> None:
    async with serving() as port:
        other = await port.connect(source="127.0.0.2")
        await port.count(1)
        clients = [await port.connect() for _ in range(4)]
        await ended(clients[0])
        for client in (other, *clients[1:]):
            await ask(client)


async def test_who_has_asked_while_the_server_was_busy_is_not_thrown_out() -> None:
    async with serving(silent_per_source=1) as port:
        raw = []
        for number in range(8):  # all in the queue before the loop has its turn
            sock = socket.create_connection(port.address)
            raw.append(sock)
            if number % 2 == 0:
                sock.sendall(ASK)
        clients = [await asyncio.open_connection(sock=sock) for sock in raw]
        for client in clients[::2]:
            await answered(client)
        for _, writer in clients:
            writer.transport.abort()


async def test_then_the_one_that_is_idle_for_longest_makes_room() -> None:
    async with serving() as port:
        clients = [await port.connect(ASK) for _ in range(4)]
        for client in clients:
            await answered(client)
        await ask(clients[0])
        newest = await port.connect(ASK)
        await answered(newest)
        await ended(clients[1])
        for client in (clients[0], *clients[2:], newest):
            await ask(client)


async def test_who_is_being_answered_does_not_and_the_next_waits() -> None:
    async with serving() as port:
        gate = ASK.replace(b"/", b"/gate", 1)
        clients = [await port.connect(gate) for _ in range(4)]
        await port.count(4)
        waiting = [await port.connect(ASK) for _ in range(20)]
        await until(lambda: port.server._paused is not None)
        assert len(port.server) <= 5
        port.gate.set()
        for client in (*clients, *waiting):
            await answered(client)


async def test_unless_it_has_taken_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BUSY", 0.1)
    async with serving() as port:
        clients = [await port.connect(ASK.replace(b"/", b"/large", 1)) for _ in range(4)]  # and do not read
        for client in clients:
            client[1].transport.pause_reading()  # type: ignore[attr-defined]
        await port.count(4)
        await answered(await port.connect(ASK))


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nX: y", b"\r\n\r\n\r\n", b"PROXY UNKNOWN\r\n", b"PROXY "])
@pytest.mark.parametrize("proxy", [False, True])
async def test_a_request_has_a_deadline(data: bytes, proxy: bool) -> None:
    async with serving(request=0.1, answer=0.1, proxy=proxy) as port:
        client = await port.connect(data)
        await ended(client)
        await port.count(0)


async def test_a_request_that_drips_has_the_same() -> None:
    async with serving(request=0.2) as port:
        client = await port.connect(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(ConnectionError):
            await drip(client, b"y")


async def test_so_has_a_second_request_that_drips() -> None:
    async with serving(idle=0.3) as port:
        client = await port.connect()
        await ask(client)
        with pytest.raises(ConnectionError):
            await drip(client, b"G")


async def test_so_has_an_answer_that_is_not_read() -> None:
    async with serving(answer=0.2) as port:
        client = await port.connect(ASK.replace(b"/", b"/large", 1))
        client[1].transport.pause_reading()  # type: ignore[attr-defined]
        await port.count(1)
        await port.count(0)


async def test_one_that_is_read_slowly_comes_to_its_end() -> None:
    async with serving() as port:
        client = await port.connect(ASK.replace(b"/", b"/large", 1))
        await answered(client)
        await ask(client)


async def test_an_idle_connection_ends_and_one_for_a_single_request_at_once() -> None:
    for idle in (0.1, 0.0):
        async with serving(idle=idle) as port:
            client = await port.connect(ASK)
            await answered(client)
            await ended(client)
            await port.count(0)


async def test_it_takes_no_more_than_its_share_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (server.SHARE * 2, 4096))
    async with serving() as port:
        clients = [await port.connect() for _ in range(3)]
        await ended(clients[0])
        for client in clients[1:]:
            await ask(client)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_descriptors_whoever_asks_nothing_makes_room() -> None:
    async with serving() as port:
        silent = await port.connect()
        await port.count(1)
        client = socket.create_connection(port.address)
        client.sendall(ASK)
        client.setblocking(False)
        with no_more_descriptors():
            async with asyncio.timeout(PATIENCE):
                answer = await asyncio.get_running_loop().sock_recv(client, 4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        await ended(silent)
        client.close()


class CountingSocket(socket.socket):
    attempts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.attempts += 1
        return super().accept()


async def test_without_descriptors_and_nobody_to_go_it_neither_ends_nor_spins(caplog: pytest.LogCaptureFixture) -> None:
    listening = CountingSocket(fileno=socket.create_server(("127.0.0.1", 0)).detach())
    async with serving(listening) as port:
        clients = [socket.create_connection(port.address) for _ in range(50)]
        with no_more_descriptors(), caplog.at_level(logging.WARNING):
            await until(lambda: listening.attempts >= 4)
        assert [record.getMessage() for record in caplog.records] == [
            "test port: no connection can be accepted: Too many open files"
        ]
        assert listening.attempts < 20, "each pause has one attempt, and not one for each who waits"
        clients[-1].sendall(ASK)
        clients[-1].setblocking(False)
        async with asyncio.timeout(PATIENCE):
            answer = await asyncio.get_running_loop().sock_recv(clients[-1], 4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        for client in clients:
            client.close()


async def test_it_stops_with_connections_of_every_kind() -> None:
    async with serving() as port:
        await port.connect()
        await port.connect(ASK.replace(b"/", b"/gate", 1))
        await ask(await port.connect())
        await port.count(3)
        port.gate.set()
