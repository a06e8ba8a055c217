"""Scripted connections for the soak: what each end sends, how it ends, and what the other end must see.

A script follows from its seed alone. The client sends the seed first, so both ends know the script, and each compares
every byte that it receives, and the way the connection ends, with the script.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass

HEADER = struct.Struct(">Q")
BLOCK = random.Random(20).randbytes(1 << 20)
DOUBLE = BLOCK + BLOCK  # a slice of up to one block can start anywhere in the first block
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds
SILENCE = 60.0  # longest wait of an end, in seconds

SIZES = (2000, 200_000, 4_000_000)  # bytes; upper bounds of small, middle and large
CHUNKS = (4096, 65536, 300_000)
KINDS = ("client_first", "upstream_first", "duplex", "client_reset", "upstream_reset", "slow_client", "no_header")


class Difference(Exception):
    """An end saw something other than the script says."""


@dataclass(frozen=True, slots=True)
class Script:
    """The script of one connection. Sizes in bytes; `cut` is what the resetting end sends before its reset."""

    seed: int
    kind: str
    up: int
    down: int
    cut: int
    chunk: int
    pause: float

    @classmethod
    def of(cls, seed: int) -> Script:
        """The script of a seed: mostly conversations of a device's size, now and then megabytes."""
        chance = random.Random(seed)
        kind = chance.choice(KINDS)
        up, down = (chance.randrange(1, chance.choices(SIZES, (80, 17, 3))[0]) for _ in range(2))
        pause = chance.choice((0.0, 0.0, 0.0, 0.001, 0.01))
        chunk = chance.choice((1, 17, 512, *CHUNKS) if max(up, down) < SIZES[0] else CHUNKS)
        cut = chance.randrange(up if kind == "client_reset" else down)
        return cls(seed, kind, up, down, cut, chunk, pause)


def expected(seed: int, offset: int, size: int) -> bytes:
    """The bytes of a stream at `offset`; both directions of a connection differ."""
    start = (seed * 7919 + offset) % len(BLOCK)
    return DOUBLE[start : start + size]


class End:
    """One end of one connection, on a non-blocking socket."""

    def __init__(self, sock: socket.socket, script: Script, *, client: bool) -> None:
        self._sock = sock
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._out, self._in = (script.seed, ~script.seed) if client else (~script.seed, script.seed)
        self._wanted = script.down if client else script.up
        self._size = script.up if client else script.down
        self._client = client
        self.received = 0

    async def run(self) -> None:
        """Play this end's part. Raises Difference."""
        kind = self._script.kind
        if kind in ("client_reset", "upstream_reset"):
            await (self._reset() if self._client == (kind == "client_reset") else self._expect_reset())
        elif self._client == (kind == "client_first"):
            # In client_first the client, in every other kind with an order the upstream, speaks first.
            await self._send(self._size)
            self._sock.shutdown(socket.SHUT_WR)
            await self._receive_all()
        elif kind in ("duplex", "slow_client"):
            await asyncio.gather(self._send_and_end(), self._receive_all())
        else:
            await self._receive_all()
            await self._send_and_end()

    async def _send_and_end(self) -> None:
        await self._send(self._size)
        self._sock.shutdown(socket.SHUT_WR)

    async def _send(self, size: int) -> None:
        script, sent = self._script, 0
        while sent < size:
            chunk = expected(self._out, sent, min(script.chunk, size - sent))
            await asyncio.wait_for(self._loop.sock_sendall(self._sock, chunk), SILENCE)
            sent += len(chunk)
            if script.pause and sent < 50 * script.chunk:
                await asyncio.sleep(script.pause)

    async def _receive_all(self) -> None:
        """Receive until FIN and compare. Raises Difference if bytes are missing or too many."""
        while data := await self._receive():
            self._compare(data)
        if self.received != self._wanted:
            raise Difference(f"FIN after {self.received} of {self._wanted} bytes")

    async def _receive(self) -> bytes:
        if self._script.kind == "slow_client" and self._client and self.received < 200_000:
            await asyncio.sleep(0.002)
        try:
            return await asyncio.wait_for(self._loop.sock_recv(self._sock, 65536), SILENCE)
        except TimeoutError:
            raise Difference(f"silence after {self.received} of {self._wanted} bytes") from None

    def _compare(self, data: bytes) -> None:
        if data != expected(self._in, self.received, len(data)):
            raise Difference(f"other bytes than were sent, somewhere in {self.received} to {self.received + len(data)}")
        self.received += len(data)

    async def _reset(self) -> None:
        await self._send(self._script.cut)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def _expect_reset(self) -> None:
        """Send and receive at once, until the other end resets. Raises Difference if that looks like a FIN."""
        sender = asyncio.ensure_future(self._send(self._size))
        try:
            while data := await self._receive():
                self._compare(data)
            # The kernel reports a reset once. If the sender got it, the receiver only sees an end, perhaps before the
            # sender's task runs. The report is ECONNRESET; EPIPE means that a FIN came before the reset (tcp_reset in
            # CLOSE_WAIT), and the receiver saw that FIN.
            await asyncio.wait([sender], timeout=SILENCE)
            if not (sender.done() and isinstance(sender.exception(), ConnectionResetError)):
                raise Difference(f"FIN after {self.received} bytes where a reset was sent")
        except (ConnectionResetError, BrokenPipeError):
            pass
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
