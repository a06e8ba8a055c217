"""One connection to the admin port or to the health port: silent until it has asked something, then aiohttp's.

What it may cost is in `Limits`; `http_server` sees to it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

import relay

SERVER = f"relay/{relay.__version__}"

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the connections of one port may cost.

    `silent_per_source` counts those that have asked nothing, by IPv4 address or IPv6 /64. With `idle` 0 a connection is
    for one request.
    """

    connections: int  # at once
    silent_per_source: int
    request: float  # seconds from the accept until the head of the first request is there
    answer: float  # seconds until an answer has been made and read
    idle: float  # seconds from an answer until the next request
    proxy: bool  # whether a PROXY header may come first


class _OwnFaults(logging.Filter):
    """Lets through what went wrong here, not that a peer does not speak HTTP: anybody could fill the log with that."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


logger = logging.getLogger("relay.http")
logger.addFilter(_OwnFaults())


class Silent:
    """A connection that has not asked anything yet. `siblings`: all of these from the same source, oldest first."""

    __slots__ = ("data", "headed", "siblings", "since", "sock", "source")

    def __init__(
        self, sock: socket.socket, source: bytes, siblings: dict[Silent, None], since: float, *, headed: bool
    ) -> None:
        self.sock = sock
        self.source = source
        self.siblings = siblings
        self.since = since
        self.data = b""
        self.headed = headed  # no PROXY header can come any more


class Handler(web.RequestHandler):
    """aiohttp's side of a connection that has asked something. `first` is what it has sent so far; `ended` is told when
    it is closed.

    Every answer says that it is relay's, those to what is no HTTP included.
    """

    __slots__ = ("busy", "ended", "first", "limits", "since", "stream")

    def __init__(self, server: web.Server, first: bytes, limits: Limits, ended: Callable[[Handler], None]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle or limits.answer,
            lingering_time=min(limits.answer, 10.0),
            access_log=None,  # type: ignore[arg-type]  # none is kept, as AppRunner says it too
            logger=logger,
        )
        self.limits = limits
        self.first = first
        self.ended = ended
        self.stream: asyncio.Transport | None = None  # kept beyond force_close, which only flushes
        self.busy = True
        self.since = asyncio.get_running_loop().time()  # when the last request came, or was answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        first, self.first = self.first, b""
        self.data_received(first)  # before anything that comes later

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.ended(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        resp.headers["Server"] = SERVER
        if not self.limits.idle:
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.busy = False
            self.since = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to be answered, and nothing of an answer that the peer has left no room for."""
        return not self.busy and (self.stream is None or not self.stream.get_write_buffer_size())

    def abort(self) -> None:
        """End it without flushing what nobody reads."""
        if self.stream is not None:
            self.stream.abort()


@web.middleware
async def mark_busy(request: web.Request, handler: Respond) -> web.StreamResponse:
    """A connection is busy from the request until its answer has been handed to the kernel."""
    protocol: Any = request.protocol
    protocol.busy = True
    protocol.since = asyncio.get_running_loop().time()
    return await handler(request)
