"""The plainest relay on uvloop: its own server, transports and protocols. For comparison in benchmarks only.

bare_uvloop.py LISTEN_PORT UPSTREAM_PORT. No limits, no accounting, no timeouts, no logs; half-close and little else.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Upstream(asyncio.Protocol):
    """The protocol of the upstream side."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.client.transport.write(data)

    def eof_received(self) -> bool:
        self.client.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.transport.close()


class Client(asyncio.Protocol):
    """The protocol of the client side."""

    transport: asyncio.Transport

    def __init__(self, port: int) -> None:
        self.port = port
        self.upstream: asyncio.Transport | None = None
        self.early: list[bytes] = []
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.task = asyncio.get_running_loop().create_task(self.dial())

    async def dial(self) -> None:
        loop = asyncio.get_running_loop()
        upstream, _ = await loop.create_connection(lambda: Upstream(self), "127.0.0.1", self.port)
        self.upstream = upstream
        upstream.writelines(self.early)
        self.early.clear()

    def data_received(self, data: bytes) -> None:
        if self.upstream is not None:
            self.upstream.write(data)
        else:
            self.early.append(data)

    def eof_received(self) -> bool:
        if self.upstream is not None:
            self.upstream.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.upstream is not None:
            self.upstream.close()


async def serve(listen: int, upstream: int) -> None:
    """Serve until killed."""
    await asyncio.get_running_loop().create_server(lambda: Client(upstream), "127.0.0.1", listen, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
