"""One connection to the admin or health port: silent until the head of its request is there, then handled by aiohttp.

`Limits` says what connections may cost; `server` enforces it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

import relay
from relay.core.proxy_header import NotProxy, parse

SERVER = f"relay/{relay.__version__}"

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the connections of one port may cost. Times are seconds."""

    connections: int  # at once
    silent_per_source: int  # silent connections of one IPv4 address or IPv6 /64
    request: float  # from the accept until the head of the first request has arrived
    answer: float  # from a request until its answer has been read
    idle: float  # from an answer to the next request; 0: one request a connection
    proxy: bool  # whether a PROXY header may come first


class _OwnFaults(logging.Filter):
    """Drops records about malformed requests, with which any peer could fill the log; keeps relay's own faults."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


logger = logging.getLogger("relay.http")
logger.addFilter(_OwnFaults())


_HEAD_END = re.compile(rb"\n\r?\n")
_BLANK = b"\r\n"  # RFC 9112 section 2.2: a server should ignore empty lines before a request
HEAD = 16384  # bytes of a request's head; aiohttp takes no line of more than 8190


class SilentConnection:
    """A connection whose request has not arrived yet.

    `siblings` are the silent connections from the same source, oldest first. `proxy`: a PROXY header may come first.
    """

    __slots__ = ("_proxy", "data", "siblings", "since", "sock", "source")

    def __init__(
        self, sock: socket.socket, source: bytes, siblings: dict[SilentConnection, None], since: float, *, proxy: bool
    ) -> None:
        self.sock = sock
        self.source = source
        self.siblings = siblings
        self.since = since
        self.data = b""
        self._proxy = proxy

    def receive(self, data: bytes) -> bool:
        """Add received bytes; True once `data` is for aiohttp, which answers with 400 to what is not HTTP.

        Raises Malformed for a malformed PROXY header.
        """
        self.data += data
        if self._proxy:
            try:
                header = parse(self.data)
            except NotProxy:
                pass
            else:
                if header is None:
                    return False
                self.data = self.data[header.size :]
            self._proxy = False
        self.data = self.data.lstrip(_BLANK)
        if not self.data:
            return False
        return not self.data[:1].isalpha() or _HEAD_END.search(self.data) is not None or len(self.data) > HEAD


class Handler(web.RequestHandler):
    """aiohttp's protocol for a connection with a request.

    `first` are the bytes received so far; `ended` is called when the connection is closed. Every answer has relay's
    Server header, also that to a malformed request.
    """

    __slots__ = ("busy", "ended", "first", "limits", "since", "stream")

    def __init__(self, server: web.Server, first: bytes, limits: Limits, ended: Callable[[Handler], None]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle or limits.answer,
            lingering_time=min(limits.answer, 10.0),
            access_log=None,  # type: ignore[arg-type]  # off, as AppRunner passes it
            logger=logger,
        )
        self.limits = limits
        self.first = first
        self.ended = ended
        self.stream: asyncio.Transport | None = None  # kept after force_close, which only flushes
        self.busy = True  # a request is being answered
        self.since = asyncio.get_running_loop().time()  # when `busy` changed last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        first, self.first = self.first, b""
        self.data_received(first)  # before any later bytes

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
            self._set_busy(False)

    def begin_request(self) -> None:
        """A request has arrived."""
        self._set_busy(True)

    def _set_busy(self, busy: bool) -> None:
        self.busy = busy
        self.since = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and the whole of the last answer is in the kernel."""
        return not self.busy and (self.stream is None or not self.stream.get_write_buffer_size())

    def abort(self) -> None:
        """Close the connection without flushing an answer that is not read."""
        if self.stream is not None:
            self.stream.abort()


@web.middleware
async def mark_busy(request: web.Request, handler: Respond) -> web.StreamResponse:
    """Middleware: a connection is busy from the request until the kernel has the answer."""
    cast(Handler, request.protocol).begin_request()
    return await handler(request)
