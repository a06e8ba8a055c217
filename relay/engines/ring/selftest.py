"""The ring's self-test: real connections through a ring engine on loopback, before traffic depends on it.

It takes a tenth of a second and covers: the wait (an idle loop does not spin, a timer comes in time), accept, connect,
echo, half-close, reset, a peer that does not read (a short send, bytes that are held and delivered later), and more
messages at once than there are buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from relay.address import Address
from relay.engines.contract import (
    NEVER,
    Action,
    Close,
    Dial,
    Event,
    Handler,
    Pump,
    SharedTimeouts,
    TcpOptions,
    Timeouts,
)
from relay.engines.ring import kernels
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.selector import RingLoop
from relay.engines.ring.unavailable import KERNEL_TOO_OLD, SELF_TEST_FAILED, cause

logger = logging.getLogger("relay.engine")

LOOPBACK = "127.0.0.1"
LIMIT = 5.0  # seconds for the whole test, on a busy machine
BUFFERS = 2
CROWD = 4 * BUFFERS  # messages at once; each takes four descriptors
PIECE = 1 << 12  # bytes sent at a time: with more than the engine passes on, the client's kernel buffers megabytes
SEGMENT, WINDOW = 1400, 1 << 16  # bytes: the upstream's TCP_MAXSEG and SO_RCVBUF
STEP = 0.05  # seconds of the idle wait
IDLE_TURNS = 6  # at most, of the ring in that time: for its timer and the tick's


class Failed(Exception):
    """The self-test failed; `word` is one of the causes in `unavailable`."""

    def __init__(self, text: str, word: str = SELF_TEST_FAILED) -> None:
        super().__init__(text)
        self.word = word


class _Handler:
    """Pumps once the upstream is connected, and records the event that ends the connection."""

    def __init__(self, ended: list[Event]) -> None:
        self.link: object | None = None
        self.expires_at = NEVER
        self.timeouts: SharedTimeouts | None = None
        self._ended = ended

    def advance(self, event: Event, value: object = None) -> Action:
        if event is Event.CONNECTED:
            return Pump()
        return self.end(event, value, 0, 0)

    def moved(self, up: int, down: int) -> None:
        pass

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        self._ended.append(event)
        return Close(event is Event.UPSTREAM_RESET, event is Event.CLIENT_RESET)


class _Trial:
    """One engine, its clients and its upstream, all on one loop."""

    def __init__(self, loop: RingLoop, release: str) -> None:
        self.loop = loop
        self.ended: list[Event] = []
        found = kernels.faults(release)
        self.engine = RingEngine(
            loop,
            Timeouts(0.0, 0.0),
            TcpOptions(),
            buffers=BUFFERS,
            multishot_receive=kernels.UNBOUNDED_RECEIVE not in found,
        )
        self._upstream = _listening(small=True)
        listener = _listening()
        self._address: Address = listener.getsockname()
        target = Dial(self._upstream.getsockname(), "", LIMIT)

        def accepted(_client: Address) -> tuple[Handler, Action]:
            return _Handler(self.ended), target

        self.engine.listen(listener, accepted)

    async def couple(self) -> tuple[socket.socket, socket.socket]:
        """Open a connection; returns the client's and the upstream's socket."""
        client = socket.socket()
        client.setblocking(False)
        await self.loop.sock_connect(client, self._address)
        upstream, _ = await self.loop.sock_accept(self._upstream)
        upstream.setblocking(False)
        return client, upstream

    async def receive(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := await self.loop.sock_recv(sock, size - len(data))):
            data += part
        return data

    async def until(self, state: Callable[[], object]) -> None:
        """Poll for a state that no event announces."""
        while not state():
            self.engine.tick(time.monotonic())
            await asyncio.sleep(0.001)

    def close(self) -> None:
        self.engine.close()
        self._upstream.close()


async def _idle(trial: _Trial) -> None:
    reactor = trial.loop.ring_selector.reactor
    turns, began = reactor.turns, time.monotonic()
    await asyncio.sleep(STEP)
    if time.monotonic() - began < STEP:
        raise Failed("a timer came early")
    if reactor.turns - turns > IDLE_TURNS:
        raise Failed(f"the wait does not wait: {reactor.turns - turns} turns in {STEP} s")


async def _echo_and_half_close(trial: _Trial) -> None:
    client, upstream = await trial.couple()
    with client, upstream:
        await trial.loop.sock_sendall(client, b"ping")
        _same(await trial.receive(upstream, 4), b"ping")
        await trial.loop.sock_sendall(upstream, b"pong")
        _same(await trial.receive(client, 4), b"pong")
        client.shutdown(socket.SHUT_WR)
        _same(await trial.receive(upstream, 1), b"")
        await trial.loop.sock_sendall(upstream, b"late")
        upstream.close()
        _same(await trial.receive(client, 5), b"late")
    await trial.until(lambda: trial.ended == [Event.FINISHED])


async def _reset(trial: _Trial) -> None:
    client, upstream = await trial.couple()
    with upstream:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        try:
            await trial.receive(upstream, 1)
        except ConnectionResetError:
            return
        raise Failed("a reset was passed on as an end")


async def _short_send(trial: _Trial) -> None:
    """An upstream that does not read at first gets all bytes in the end."""
    client, upstream = await trial.couple()
    with client, upstream:
        pattern = os.urandom(1021)  # a prime: no buffer's size is a multiple
        data = pattern * (WINDOW // len(pattern) + 2)
        sent = 0
        while not trial.engine.held:
            with contextlib.suppress(BlockingIOError):
                start = sent % len(pattern)
                sent += client.send(data[start : start + PIECE])
            await asyncio.sleep(0)
        client.shutdown(socket.SHUT_WR)
        received = 0
        while part := await trial.loop.sock_recv(upstream, WINDOW):
            start = received % len(pattern)
            _same(part, data[start : start + len(part)])
            received += len(part)
        if received != sent:
            raise Failed(f"{sent - received} of {sent} bytes are missing")


async def _shortage(trial: _Trial) -> None:
    """More messages come in one turn than there are buffers."""
    couples = [await trial.couple() for _ in range(CROWD)]
    for number, (client, _) in enumerate(couples):
        client.send(number.to_bytes(4, "big"))  # the loop does not run meanwhile: the ring finds all at once
    for number, (client, upstream) in enumerate(couples):
        _same(await trial.receive(upstream, 4), number.to_bytes(4, "big"))
        client.close()
        upstream.close()


STEPS: tuple[tuple[str, Callable[[_Trial], Awaitable[None]]], ...] = (
    ("idle wait", _idle),
    ("echo and half-close", _echo_and_half_close),
    ("reset", _reset),
    ("short send", _short_send),
    ("buffer shortage", _shortage),
)


def run(release: str, rings: int = 1) -> float:
    """Run the self-test, and make sure that `rings` rings can exist at once; returns the seconds it took.

    Raises Failed with the cause and, where there is one, the remedy.
    """
    if kernels.version(release) < kernels.OLDEST:
        oldest = ".".join(map(str, kernels.OLDEST))
        raise Failed(f"Linux {release} is too old for it: {oldest} or newer is needed", KERNEL_TOO_OLD)
    began = time.monotonic()
    # Failed carries the cause; an operator has no use for a log of the attempt.
    quiet, logger.disabled = logger.disabled, True
    try:
        _check_count(rings)
        return _run(release, began)
    finally:
        logger.disabled = quiet


def _check_count(count: int) -> None:
    """Make as many rings at once as there will be workers: RLIMIT_MEMLOCK counts by user, not by process."""
    made: list[Reactor] = []
    try:
        while len(made) < count:
            made.append(Reactor())
    except OSError as error:
        have = f"{len(made)} of {count} rings can be had: " if made else ""
        word, text = cause(error)
        raise Failed(have + text, word) from error
    finally:
        for reactor in made:
            reactor.close()


def _run(release: str, began: float) -> float:
    try:
        loop = RingLoop()
    except OSError as error:
        word, text = cause(error)
        raise Failed(text, word) from error
    step = "set-up"
    try:
        trial = _Trial(loop, release)

        async def steps() -> None:
            nonlocal step
            async with asyncio.timeout(LIMIT):
                for name, function in STEPS:
                    step = name
                    await function(trial)

        try:
            loop.run_until_complete(steps())
        finally:
            trial.close()
    except TimeoutError:
        raise Failed(f"self-test, {step}: not over within {LIMIT:g} s") from None
    except Failed as error:
        raise Failed(f"self-test, {step}: {error}") from None
    except OSError as error:
        raise Failed(f"self-test, {step}: {cause(error).text}") from error
    finally:
        loop.close()
    return time.monotonic() - began


def _listening(*, small: bool = False) -> socket.socket:
    sock = socket.socket()
    if small:  # the sender's kernel sizes its buffer by the segment size: on loopback, megabytes
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
    sock.bind((LOOPBACK, 0))
    sock.listen(CROWD)
    sock.setblocking(False)
    return sock


def _same(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise Failed(f"other bytes than were sent: {found[:20]!r} instead of {expected[:20]!r}")
