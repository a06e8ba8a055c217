"""The HTTP server of the admin port and of the health port: aiohttp behind a listening socket of the supervisor's."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

import relay

SERVER = f"relay/{relay.__version__}"
PROBE_SECONDS = 30.0  # a connection to the health port lives no longer than this, whatever it does
PROBE_CONNECTIONS = 64  # at the same time; one more is closed at once


class _OwnFaults(logging.Filter):
    """Lets through what went wrong here, not that a peer does not speak HTTP: anybody could fill the log with that."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


logger = logging.getLogger("relay.http")
logger.addFilter(_OwnFaults())


class _Handler(web.RequestHandler):
    """aiohttp's side of one connection. Every answer says that it is relay's, those to what is no HTTP included."""

    __slots__ = ()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        resp.headers["Server"] = SERVER
        return await super().finish_response(request, resp, start_time)


class HttpServer:
    """Serves an application on a bound socket. With `probes`, connections are limited in number and age."""

    def __init__(self, app: web.Application, sock: socket.socket, *, probes: bool) -> None:
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        self._sock = sock
        self._probes = probes
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(self._connection, sock=self._sock)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None
        handler = _Handler(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none is kept, as AppRunner says it too
            logger=logger,
        )
        return _Probe(server, handler) if self._probes else handler


class _Probe(asyncio.Protocol):
    """Lets a connection to the health port have an HTTP handler, if there are not too many and not for too long.

    Counted when it is made and not before: of a burst, asyncio makes all protocols first.
    """

    def __init__(self, server: web.Server, handler: web.RequestHandler) -> None:
        self._server = server
        self._handler = handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= PROBE_CONNECTIONS:
            stream.abort()
            return
        stream.set_protocol(self._handler)
        self._handler.connection_made(stream)
        asyncio.get_running_loop().call_later(PROBE_SECONDS, self._handler.force_close)
