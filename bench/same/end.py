"""One end of a scripted connection: it plays its part and records what it sees. Both ends are in one process."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.same.signals import Bell, Errors
from bench.same.steps import Do, Fill, Part, Pause, Say, SayOn, Step, Until, When
from bench.script import RESET, expected
from relay.engines.tcp_state import acknowledged

# The kernel's errors after the other end's reset: the first is reported once, the others from then on.
RESETS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN})
PAUSED = 50  # chunks of one Say that are followed by a pause
FULL = 0.15  # seconds without room after which the way counts as full
FILL_MOST = 64 << 20  # bytes after which a Fill gives up: no buffers are that large
ACKNOWLEDGED = 2.0  # seconds that the next kernel on the way gets to acknowledge everything
SLOW_BYTES = 150_000  # bytes that a slow reader reads slowly; the rest at once
SMALL_WINDOW = 4096  # bytes of a slow reader's receive buffer


@dataclass(slots=True)
class Seen:
    """What one end saw."""

    connected: bool = False
    received: int = 0
    digest: str = ""  # of the bytes received
    altered: bool = False  # the bytes received are not those that were sent
    after_own_end: int = 0  # bytes received after this end's own FIN
    fin: bool = False
    reset: bool = False
    owed: bool = False  # all bytes of the other end were received, or had reached the next kernel on the way
    untold: bool = False  # it waited in vain for a reset to be reported
    trouble: str = ""  # an error other than a reset, or a wait in vain
    told_after: float = 0.0  # seconds from the other end's reset until it was reported here

    def __str__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.__slots__)
        return ", ".join(f"{name} {value}" for name, value in values if value or name == "received")


class Told(Exception):
    """A reset interrupted the end's step."""


class Hopeless(Exception):
    """The condition of a wait cannot come true any more."""


@dataclass(slots=True, eq=False)
class End:
    """One end. `other` is set once both ends exist."""

    part: Part
    outgoing: int  # seeds of what is sent and of what must come
    incoming: int
    bell: Bell
    errors: Errors
    patience: float  # seconds in which a reset must be reported
    note: Callable[[str], None] | None = None  # called with each happening, to follow one script
    other: End = field(init=False)
    seen: Seen = field(default_factory=Seen)
    sock: socket.socket | None = None
    sent: int = 0
    doing: Step | None = None
    finished: bool = False  # FIN sent
    broke: float = 0.0  # when it closed or reset, monotonic seconds
    over: bool = False
    _taken: bool = False  # a call returned the reset, so the kernel does not report it again
    _hash: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=8))
    _reader: asyncio.Task[None] | None = None

    async def run(self, sock: socket.socket) -> None:
        """Play the part on a connected, non-blocking socket; `leave` closes it."""
        self.sock = sock
        self.seen.connected = True
        self._say("connected")
        self.bell.ring()
        self.errors.watch(sock, self._told)
        try:
            if not self.part.deaf:
                self._listen()
            await self._take_steps()
            if self._reader is not None:
                await self._reader
        finally:
            self.over = True
            self.bell.ring()

    async def leave(self, *, reset: bool) -> None:
        """Close the socket if it is open, and check a last time for a reset that came after the last step."""
        self.seen.digest = self._hash.hexdigest()
        self.seen.altered |= self.seen.received > self.other.sent
        if self.sock is not None:
            if number := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._failed(OSError(number, ""))
            await self._close(reset=reset)

    # --- the steps ------------------------------------------------------------------------------------------------

    async def _take_steps(self) -> None:
        try:
            for step in self.part.steps:
                self.doing = step
                self._say(f"{step}")
                await self._take(step)
            self.doing = None
        except Told:
            pass
        except Hopeless:
            self.seen.trouble = f"the other end is over, in vain: {self.doing}"

    async def _take(self, step: Step) -> None:
        if isinstance(step, Say):
            await self._say_all(step)
        elif isinstance(step, SayOn):
            while True:
                await self._send(expected(self.outgoing, self.sent, step.chunk))
                await asyncio.sleep(0)
        elif isinstance(step, Fill):
            await self._fill(step)
        elif isinstance(step, Until):
            await self._until(step)
        elif isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        elif step is Do.LISTEN:
            self._listen()
        elif step is Do.FINISH:
            self._finish()
        else:
            await self._close(reset=step is Do.RESET)

    async def _say_all(self, step: Say) -> None:
        end, chunks = self.sent + step.size, 0
        while self.sent < end:
            await self._send(expected(self.outgoing, self.sent, min(step.chunk, end - self.sent)))
            chunks += 1
            await asyncio.sleep(step.pause if chunks < PAUSED else 0)

    async def _fill(self, step: Fill) -> None:
        try:
            while self.sent < FILL_MOST:
                async with asyncio.timeout(FULL):
                    await self._send(expected(self.outgoing, self.sent, step.chunk))
        except TimeoutError:
            return
        self.seen.trouble = f"{self.sent} bytes were taken that nobody reads"

    async def _until(self, step: Until) -> None:
        if step.when is When.UNREAD:
            await self._ready(writing=False)
        elif step.when is When.TOLD:
            await self._until_told()
        elif step.when is When.ACKED:
            await self._until_acknowledged()
        else:
            await self._until_condition(step)

    async def _until_told(self) -> None:
        seen, other, ring = self.seen, self.other, self.bell.wait

        def over() -> bool:
            # After a FIN that should not have come there is nothing left to wait for.
            return seen.reset or (seen.fin and other.part.whole is None)

        while not over() and not other.broke:
            await ring()
        try:
            async with asyncio.timeout(self.patience):
                while not over():
                    await ring()
        except TimeoutError:
            seen.untold = True

    async def _until_acknowledged(self) -> None:
        assert self.sock is not None
        until = time.monotonic() + ACKNOWLEDGED
        # The kernel has no event for an acknowledgement, so it is polled.
        while not (acknowledged(self.sock.fileno()) or time.monotonic() > until):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self.other.seen.owed = acknowledged(self.sock.fileno())

    async def _until_condition(self, step: Until) -> None:
        other, seen = self.other, self.seen
        conditions: dict[When, Callable[[], bool]] = {
            When.MET: lambda: other.seen.connected,
            When.GOT: lambda: seen.received >= step.size,
            When.TAKEN: lambda: other.seen.received >= self.sent,
            When.ENDED: lambda: seen.fin,
            When.SEEN: lambda: other.seen.fin,
            When.GONE: lambda: other.broke > 0,
        }
        condition = conditions[step.when]
        while not condition():
            if seen.reset:
                raise Told
            if other.over and step.when in (When.MET, When.TAKEN, When.SEEN):
                raise Hopeless
            await self.bell.wait()
        if step.when is When.TAKEN:
            other.seen.owed = True

    def _finish(self) -> None:
        assert self.sock is not None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._failed(error)
            raise Told from None
        self.finished = True

    async def _close(self, *, reset: bool) -> None:
        assert self.sock is not None
        sock, self.sock = self.sock, None
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        self.errors.forget(sock)
        self.broke = time.monotonic()
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        self.bell.ring()

    # --- sending and receiving ------------------------------------------------------------------------------------

    async def _send(self, data: bytes) -> None:
        while data:
            assert self.sock is not None
            try:
                size = self.sock.send(data)
            except BlockingIOError:
                await self._ready(writing=True)
                continue
            except OSError as error:
                self._failed(error)
                raise Told from None
            self.sent += size
            data = data[size:]

    def _listen(self) -> None:
        self._reader = asyncio.get_running_loop().create_task(self._receive())

    async def _receive(self) -> None:
        assert self.sock is not None
        while True:
            try:
                data = self.sock.recv(SMALL_WINDOW if self.part.slow else 65536)
            except BlockingIOError:
                await self._ready(writing=False)
                continue
            except OSError as error:
                self._failed(error)
                return
            if not data:
                # After a call has returned the reset, the kernel answers every receive like this; it is not a FIN.
                self.seen.fin = not self._taken
                self._say("FIN" if self.seen.fin else "nothing more, after the reset")
                self.bell.ring()
                return
            self._count(data)
            await asyncio.sleep(0.003 if self.part.slow and self.seen.received < SLOW_BYTES else 0)

    def _count(self, data: bytes) -> None:
        seen = self.seen
        if data != expected(self.incoming, seen.received, len(data)):
            seen.altered = True
        self._hash.update(data)
        seen.received += len(data)
        if self.finished:
            seen.after_own_end += len(data)
        if self.note is not None:
            self._say(f"received {len(data)}, {seen.received} in all")
        self.bell.ring()

    async def _ready(self, *, writing: bool) -> None:
        """Wait until the socket is readable or writable; an error counts as both."""
        assert self.sock is not None
        loop, fd = asyncio.get_running_loop(), self.sock.fileno()
        future = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(fd, _wake, future)
        try:
            await future
        finally:
            remove(fd)

    def _failed(self, error: OSError) -> None:
        """Record the error of a call."""
        self._taken = True
        self._say(f"{errno.errorcode.get(error.errno or 0, error)}")
        if error.errno in RESETS:
            self._told()
        else:
            self.seen.trouble = errno.errorcode.get(error.errno or 0, str(error))
        self.bell.ring()

    def _told(self) -> None:
        if not self.seen.reset:
            self.seen.reset = True
            self._say("was told of a reset")
            if self.other.broke:
                self.seen.told_after = time.monotonic() - self.other.broke
        self.bell.ring()

    def _say(self, text: str) -> None:
        if self.note is not None:
            self.note(text)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
