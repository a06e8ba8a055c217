"""Real TLS servers on loopback, each with its own fault, and an authority that a test may trust or not."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from relay.address import Address

NAME, OTHER = "hub.example", "other.example"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """An authority; `file` has its certificate."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.file = directory / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))
        self.names: list[str | None] = []  # the SNI of each handshake

    def context(self, name: str = NAME, *, days: float = 30, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A server's context, with a certificate that expires in `days`."""
        now = datetime.datetime.now(datetime.UTC)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = self._authority.issue_cert(
            name, not_before=now - datetime.timedelta(days=90), not_after=now + datetime.timedelta(days=days)
        )
        certificate.configure_cert(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        context.sni_callback = self._named
        return context

    def _named(self, _sock: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.names.append(name)


class Ends:
    """How the connections that a server had ended: "eof" after close_notify, or the error."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._changed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await reader.read()
        except (ssl.SSLError, OSError) as error:
            self.seen.append(type(error).__name__)
        else:
            self.seen.append("eof" if not data else f"{len(data)} bytes")
        finally:
            writer.close()
            self._changed.set()

    async def wait(self, count: int) -> list[str]:
        while len(self.seen) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.seen


@asynccontextmanager
async def serving(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server on loopback; without a context it speaks plain TCP."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
