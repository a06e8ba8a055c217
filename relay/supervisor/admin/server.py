"""The HTTP server of the admin port and of the health port: aiohttp, behind a front that a crowd cannot fill.

A connection is *silent* until its request's head is there, and costs a descriptor and what it has sent until then;
only with a whole head does aiohttp get it. `Limits` says how many there may be, and for how long. Where there is no
room for one more, the oldest silent connection goes, so that one that asks is answered however many do not.

On the health port a PROXY header may come first, whether or not the listeners speak that protocol: a load balancer
whose Private Link Service sends one sends it with its probes, too. The address that it names counts for nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import resource
import socket

from aiohttp import web

from relay.core.proxy_header import Malformed, NotProxy, parse
from relay.engines.acceptor import ACCEPT_CAPACITY_ERRNOS
from relay.supervisor.admin.connection import Handler, Limits, Silent, logger, mark_busy

BACKLOG = 4096  # connections that wait to be accepted; net.core.somaxconn may allow fewer
ACCEPTS = 64  # connections taken in one turn of the loop before everything else has its own
SWEEP = 0.5  # seconds between two looks at who has taken too long
FULL = 0.1  # seconds without accepting while every connection there is is being answered
SHORT = 1.0  # seconds without accepting after the machine had no descriptor or no memory for one more
SAY_AGAIN = 60.0  # seconds between two lines of the log about that
BUSY = 5.0  # seconds after which one that is still being answered may have to make room
HEAD = 16384  # bytes of a request's head; aiohttp takes no line of more than 8190
LEAST = 16  # connections that a port has in any case
SHARE = 16  # a port takes at most the 16th part of the descriptors that the process may have

_HEAD_END = re.compile(rb"\n\r?\n")
_BLANK = b"\r\n"  # RFC 9112 section 2.2: empty lines before a request are to be ignored

# A probe is answered and closed: there is no time at which a probe meets a connection that is just being closed.
HEALTH = Limits(connections=256, silent_per_source=64, request=2.5, answer=5.0, idle=0.0, proxy=True)
# Prometheus keeps its connection from scrape to scrape; an answer may be megabytes, and whoever reads it far away.
ADMIN = Limits(connections=64, silent_per_source=64, request=10.0, answer=300.0, idle=90.0, proxy=False)


class HttpServer:
    """Serves an application on a bound socket, within limits. `name` is that of the port, for the log."""

    def __init__(self, app: web.Application, sock: socket.socket, limits: Limits, name: str) -> None:
        app.middlewares.insert(0, mark_busy)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        self._sock = sock
        self.limits = limits
        self._name = name
        self._most = limits.connections
        self._silent: dict[Silent, None] = {}  # oldest first
        self._sources: dict[bytes, dict[Silent, None]] = {}
        self._handlers: dict[Handler, None] = {}
        self._attaching: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._said = -SAY_AGAIN
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Accept connections from now on."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors != resource.RLIM_INFINITY:
            self._most = min(self._most, max(LEAST, descriptors // SHARE))
        await self._runner.setup()
        self._sock.listen(BACKLOG)
        self._loop.add_reader(self._sock, self._accept)

    async def stop(self) -> None:
        """Close the port; whoever is being answered has a second to read it."""
        for timer in (self._paused, self._sweeping):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for one in list(self._silent):
            self._drop(one)
        await asyncio.gather(*self._attaching, return_exceptions=True)
        await self._runner.cleanup()

    def __len__(self) -> int:
        return len(self._silent) + len(self._handlers)

    def _ended(self, handler: Handler) -> None:
        """A connection that was answered is closed."""
        self._handlers.pop(handler, None)

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            if len(self) > self._most and not self._make_room():
                self._pause(FULL)
                return
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in ACCEPT_CAPACITY_ERRNOS and self._make_room():
                    continue
                if error.errno in ACCEPT_CAPACITY_ERRNOS or error.errno in (errno.EBADF, errno.EINVAL):
                    self._pause(SHORT)
                    self._say_short(error)
                    return
                continue  # accept(2): an error of the connection that would have been next
            if not self._take(sock, _source(peer[0])):
                self._pause(FULL)
                return

    def _pause(self, seconds: float) -> None:
        """Leave connections in the kernel's queue for that long."""
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._sock, self._accept)

    def _say_short(self, error: OSError) -> None:
        if (now := self._loop.time()) - self._said >= SAY_AGAIN:
            self._said = now
            logger.warning("%s port: no connection can be accepted: %s", self._name, error.strerror)

    def _take(self, sock: socket.socket, source: bytes) -> bool:
        """Begin with a connection; False if it is one too many, and all others are just being answered."""
        siblings = self._sources.setdefault(source, {})
        one = Silent(sock, source, siblings, self._loop.time(), headed=not self.limits.proxy)
        self._silent[one] = siblings[one] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        sock.setblocking(False)
        self._read(one)  # as a rule the request is there, and then it need not make room for anybody
        if one not in siblings:
            return True
        self._loop.add_reader(sock, self._read, one)
        if len(siblings) > self.limits.silent_per_source:
            self._evict(siblings, one)
        return len(self) <= self._most or self._make_room(one)

    # --- making room --------------------------------------------------------------------------------------------------

    def _make_room(self, newest: Silent | None = None) -> bool:
        """End the connection that can best be done without, if there is one: silent, idle, or slow to read."""
        if self._evict(self._silent, newest):
            return True
        idle = [handler for handler in self._handlers if handler.idle]
        if idle:
            handler = min(idle, key=lambda item: item.since)
            handler.force_close()
        else:
            slow = [handler for handler in self._handlers if self._loop.time() - handler.since > BUSY]
            if not slow:
                return False
            handler = min(slow, key=lambda item: item.since)
            handler.abort()
        self._ended(handler)
        return True

    def _evict(self, among: dict[Silent, None], newest: Silent | None) -> bool:
        """End the oldest of these that has still nothing to ask, or finds itself ended."""
        while among and (oldest := next(iter(among))) is not newest:
            self._read(oldest)
            if oldest in among:
                self._drop(oldest)
                return True
            if oldest.sock.fileno() < 0:
                return True
        return False

    def _drop(self, one: Silent) -> None:
        self._forget(one)
        one.sock.close()

    def _forget(self, one: Silent) -> None:
        self._loop.remove_reader(one.sock)
        del self._silent[one], one.siblings[one]
        if not one.siblings:
            self._sources.pop(one.source, None)

    def _sweep(self) -> None:
        now = self._loop.time()
        for one in list(self._silent):
            if now - one.since < self.limits.request:
                break
            self._drop(one)
        for handler in list(self._handlers):
            if not handler.idle and now - handler.since > self.limits.answer:
                handler.abort()
        again = self._silent or self._handlers
        self._sweeping = self._loop.call_later(SWEEP, self._sweep) if again else None

    # --- from silent to asking ----------------------------------------------------------------------------------------

    def _read(self, one: Silent) -> None:
        try:
            data = one.sock.recv(HEAD)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data or not self._head(one, data):
            self._drop(one)

    def _head(self, one: Silent, data: bytes) -> bool:
        """Add what was received; False if it is not to be answered."""
        one.data += data
        if not one.headed:
            try:
                header = parse(one.data)
            except NotProxy:
                one.headed = True
            except Malformed:
                return False
            else:
                if header is None:
                    return True
                one.headed, one.data = True, one.data[header.size :]
        one.data = one.data.lstrip(_BLANK)
        if one.data and (not one.data[:1].isalpha() or _HEAD_END.search(one.data) or len(one.data) > HEAD):
            self._hand_over(one)  # what is not HTTP included: aiohttp answers with 400
        return True

    def _hand_over(self, one: Silent) -> None:
        self._forget(one)
        server = self._runner.server
        assert server is not None
        handler = Handler(server, one.data, self.limits, self._ended)
        self._handlers[handler] = None
        task = self._loop.create_task(self._attach(one.sock, handler))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _attach(self, sock: socket.socket, handler: Handler) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: handler, sock)
        except OSError:
            self._ended(handler)
            sock.close()


def _source(host: str) -> bytes:
    """What counts as one source: an IPv4 address, or 64 bits of an IPv6 one."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    with contextlib.suppress(OSError):
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]
    return host.encode()
