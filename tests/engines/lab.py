"""The parts of an engine test: running engines of one kind, listeners, and peers on both sides."""

from __future__ import annotations

import socket
from typing import NamedTuple

from relay.address import Address
from relay.engines.contract import Dial, Event, TcpOptions, Timeouts
from tests.engines import peers
from tests.engines.kinds import Kind
from tests.engines.peers import push
from tests.engines.running import DEADLINE, RunningEngine
from tests.engines.script import Answer, Script, ScriptedHandler

IPV4, IPV6 = "127.0.0.1", "::1"
NO_TIMEOUTS = Timeouts(idle=0.0, half_close=0.0)
TCP = TcpOptions(user_timeout=0.0)  # on a slow machine, one could end a connection whose peer does not read yet


class Couple(NamedTuple):
    """One relayed connection: its two far ends, and the handler between them."""

    client: socket.socket
    upstream: socket.socket
    handler: ScriptedHandler


def fill(engine: RunningEngine, sock: socket.socket, data: bytes) -> int:
    """Send `data` repeatedly until the engine holds bytes, while no peer reads; returns the bytes sent."""
    (total,) = fill_all(engine, [sock], data)
    return total


def fill_all(engine: RunningEngine, socks: list[socket.socket], data: bytes) -> list[int]:
    """`fill` for several sockets at once. Waits until the held bytes are stable, since the kernel's buffers grow."""
    totals = [0] * len(socks)
    before = -1
    while True:
        totals = [push(sock, data, total) for sock, total in zip(socks, totals, strict=True)]
        engine.wait_ticks(3)
        held = engine.engine.held
        if held and held == before:
            return totals
        before = held


class Line:
    """A path through an engine: one listener, and the upstream that it dials."""

    def __init__(self, lab: Lab, engine: RunningEngine, host: str, answers: dict[Event, Answer], buffers: int) -> None:
        self._lab = lab
        self._engine = engine
        self._buffers = buffers
        self.upstream = lab.listening(host, buffers=buffers)
        self.script = Script(lab.dial(self.upstream), answers)
        self.address = lab.listen(engine, self.script, host, buffers)

    def client(self) -> socket.socket:
        """A connected client, whose connection the upstream has not accepted yet."""
        return self._lab.connected(self.address, self._buffers)

    def open(self) -> Couple:
        """A connection from end to end. Only one may be opened on a line at a time."""
        client = self.client()
        upstream = self._lab.accepted(self.upstream)
        handler = self._engine.handler_of(client)
        self._engine.wait(lambda: Event.CONNECTED in handler.kinds, "the engine reports CONNECTED")
        return Couple(client, upstream, handler)


class Lab:
    """Engines and sockets of one test; `close` closes them all."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._engines: list[RunningEngine] = []
        self._sockets: list[socket.socket] = []

    def start(
        self,
        *,
        timeouts: Timeouts = NO_TIMEOUTS,
        tcp: TcpOptions = TCP,
        report_source: bool = False,
        held_limit: int = 0,
    ) -> RunningEngine:
        """A running engine; without timeouts by default."""
        engine = RunningEngine(self.kind, timeouts, tcp, report_source, held_limit)
        self._engines.append(engine)
        return engine

    def line(
        self,
        engine: RunningEngine,
        host: str = IPV4,
        answers: dict[Event, Answer] | None = None,
        *,
        buffers: int = 0,
    ) -> Line:
        """A listener on `engine` that dials an upstream of its own; `buffers`: see `peers.listening`."""
        return Line(self, engine, host, answers or {}, buffers)

    def couple(self, engine: RunningEngine, host: str = IPV4) -> Couple:
        """One connection from end to end, on a line of its own."""
        return self.line(engine, host).open()

    def listen(self, engine: RunningEngine, script: Script, host: str = IPV4, buffers: int = 0) -> Address:
        """Let `engine` accept on a new listening socket; returns its address."""
        sock = peers.listening(host, buffers=buffers)
        address = peers.address_of(sock)
        engine.listen(sock, script)
        return address

    def dial(self, upstream: socket.socket, source: str = "", timeout: float = DEADLINE) -> Dial:
        """The action that dials a listening socket."""
        return Dial(peers.address_of(upstream), source, timeout)

    def listening(self, host: str = IPV4, backlog: int = 1024, buffers: int = 0) -> socket.socket:
        return self._keep(peers.listening(host, backlog, buffers))

    def connected(self, address: Address, buffers: int = 0) -> socket.socket:
        return self._keep(peers.connected(address, buffers))

    def accepted(self, listener: socket.socket) -> socket.socket:
        return self._keep(peers.accepted(listener))

    def closed_port(self, host: str = IPV4) -> Address:
        """An address without a listener, reserved while the test runs."""
        sock = self._keep(socket.socket(peers.family_of(host), socket.SOCK_STREAM, socket.IPPROTO_TCP))
        sock.bind((host, 0))
        return peers.address_of(sock)

    def silent_port(self) -> Address:
        """An address where a SYN gets no answer: the accept queue is full (tcp_conn_request drops SYNs then)."""
        listener = self.listening(backlog=0)
        address = peers.address_of(listener)
        while True:
            sock = self._keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            sock.settimeout(0.3)
            try:
                sock.connect(address)
            except TimeoutError:
                return address

    def close(self) -> None:
        try:
            for engine in self._engines:
                engine.close()
        finally:
            for sock in self._sockets:
                sock.close()
        for engine in self._engines:
            assert engine.errors == []

    def close_sockets(self, *but: socket.socket) -> None:
        """Close all peers except `but`."""
        for sock in self._sockets:
            if sock not in but:
                sock.close()
        self._sockets = list(but)

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock
