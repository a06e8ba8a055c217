"""The HTTP server of the admin and health ports: aiohttp, protected against a crowd of idle connections.

A connection is *silent* until the head of its request has arrived; until then it costs a descriptor and the bytes that
it has sent, and only then aiohttp gets it. `Limits` says how many connections there may be, and for how long. Where
there is no room for a new one, the oldest silent connection is closed, so that requests are answered however many
connections send none.

On the health port a PROXY header may come first, whatever the listeners' `proxy_protocol`: a load balancer whose
Private Link Service adds the header sends it with its probes as well. The address in it is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket

from aiohttp import web

from relay.core.proxy_header import Malformed
from relay.engines.acceptor import ACCEPT_CAPACITY_ERRNOS
from relay.supervisor.admin.connection import HEAD, Handler, Limits, SilentConnection, logger, mark_busy

BACKLOG = 4096  # length of the accept queue; net.core.somaxconn may allow less
ACCEPTS = 64  # connections accepted in one turn of the event loop
SWEEP = 0.5  # seconds between two checks for connections that are over time
FULL = 0.1  # seconds without accepting while every connection is being answered
SHORT = 1.0  # seconds without accepting after descriptors or memory ran out
WARN_AGAIN = 60.0  # seconds between two warnings about that
BUSY = 5.0  # seconds after which a connection that is still being answered may be closed to make room
LEAST = 16  # connections that a port may have whatever the descriptor limit
SHARE = 16  # a port takes at most 1/16 of the process's descriptors

# One request a connection: a probe can never meet a keep-alive connection that is just being closed.
HEALTH = Limits(connections=256, silent_per_source=64, request=2.5, answer=5.0, idle=0.0, proxy=True)
# Prometheus keeps its connection from scrape to scrape; an answer may be megabytes, and its reader far away.
ADMIN = Limits(connections=64, silent_per_source=64, request=10.0, answer=300.0, idle=90.0, proxy=False)


class HttpServer:
    """Serves an application on a bound socket, within limits. `name` is the port's name in the log."""

    def __init__(self, app: web.Application, sock: socket.socket, limits: Limits, name: str) -> None:
        app.middlewares.insert(0, mark_busy)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        self._sock = sock
        self.limits = limits
        self._name = name
        self._most = limits.connections
        self._silent: dict[SilentConnection, None] = {}  # oldest first
        self._sources: dict[bytes, dict[SilentConnection, None]] = {}
        self._handlers: dict[Handler, None] = {}
        self._attaching: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._warned_at = -WARN_AGAIN
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
        """Close the port; a client that is being answered has a second to read the answer."""
        for timer in (self._paused, self._sweeping):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for connection in list(self._silent):
            self._drop(connection)
        await asyncio.gather(*self._attaching, return_exceptions=True)
        await self._runner.cleanup()

    def __len__(self) -> int:
        return len(self._silent) + len(self._handlers)

    def _ended(self, handler: Handler) -> None:
        """A handler's connection is closed."""
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
                    self._warn_short(error)
                    return
                continue  # accept(2) passes on an error of the connection that would have been next
            if not self._take(sock, _source(peer[0])):
                self._pause(FULL)
                return

    def _pause(self, seconds: float) -> None:
        """Leave connections in the accept queue for `seconds`."""
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._sock, self._accept)

    def _warn_short(self, error: OSError) -> None:
        if (now := self._loop.time()) - self._warned_at >= WARN_AGAIN:
            self._warned_at = now
            logger.warning("%s port: no connection can be accepted: %s", self._name, error.strerror)

    def _take(self, sock: socket.socket, source: bytes) -> bool:
        """Begin with an accepted connection; False if there is one too many and none can be closed."""
        siblings = self._sources.setdefault(source, {})
        connection = SilentConnection(sock, source, siblings, self._loop.time(), proxy=self.limits.proxy)
        self._silent[connection] = siblings[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        sock.setblocking(False)
        self._read(connection)  # as a rule the request is there already, and the connection no longer silent
        if connection not in siblings:
            return True
        self._loop.add_reader(sock, self._read, connection)
        if len(siblings) > self.limits.silent_per_source:
            self._evict(siblings, connection)
        return len(self) <= self._most or self._make_room(connection)

    # --- making room --------------------------------------------------------------------------------------------------

    def _make_room(self, newest: SilentConnection | None = None) -> bool:
        """Close the oldest silent connection, else the oldest idle one, else one answered for over BUSY seconds."""
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

    def _evict(self, among: dict[SilentConnection, None], newest: SilentConnection | None) -> bool:
        """Close the oldest of `among` but `newest` that is still silent when read once more; True if one was closed."""
        while among and (oldest := next(iter(among))) is not newest:
            self._read(oldest)
            if oldest in among:
                self._drop(oldest)
                return True
            if oldest.sock.fileno() < 0:
                return True
        return False

    def _drop(self, connection: SilentConnection) -> None:
        self._forget(connection)
        connection.sock.close()

    def _forget(self, connection: SilentConnection) -> None:
        self._loop.remove_reader(connection.sock)
        del self._silent[connection], connection.siblings[connection]
        if not connection.siblings:
            self._sources.pop(connection.source, None)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self._silent):
            if now - connection.since < self.limits.request:
                break
            self._drop(connection)
        for handler in list(self._handlers):
            if not handler.idle and now - handler.since > self.limits.answer:
                handler.abort()
        again = self._silent or self._handlers
        self._sweeping = self._loop.call_later(SWEEP, self._sweep) if again else None

    # --- from silent to answered --------------------------------------------------------------------------------------

    def _read(self, connection: SilentConnection) -> None:
        try:
            data = connection.sock.recv(HEAD)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        try:
            complete = bool(data) and connection.receive(data)
        except Malformed:
            data, complete = b"", False
        if not data:
            self._drop(connection)
        elif complete:
            self._hand_over(connection)

    def _hand_over(self, connection: SilentConnection) -> None:
        self._forget(connection)
        server = self._runner.server
        assert server is not None
        handler = Handler(server, connection.data, self.limits, self._ended)
        self._handlers[handler] = None
        task = self._loop.create_task(self._attach(connection.sock, handler))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _attach(self, sock: socket.socket, handler: Handler) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: handler, sock)
        except OSError:
            self._ended(handler)
            sock.close()


def _source(host: str) -> bytes:
    """The key of a source: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    with contextlib.suppress(OSError):
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]
    return host.encode()
