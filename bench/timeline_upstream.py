"""The hub of the timeline, a separate process: receives numbered messages over TLS, acknowledges and records each.

    python -m bench.timeline_upstream SERVER_PEM RECORD PORT...

When its standard input ends, every message that arrived is written to RECORD, as it came: device, number, and which of
the device's connections it came through.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from asyncio import sslproto
from pathlib import Path
from struct import Struct

HEAD = Struct("!III")  # device, number, which connection of this device
MESSAGE = 128  # bytes; the rest is padding
ACK = Struct("!I")  # number
BUFFER = 16 * 1024  # bytes of buffer for each TLS connection, in place of asyncio's default of 256 KiB


def small_buffers() -> None:
    """A protocol with a small buffer: with asyncio's default, thousands of connections would take gigabytes."""
    sslproto.SSLProtocol.max_size = BUFFER


class Hub(asyncio.Protocol):
    """One connection of a device."""

    def __init__(self, record: bytearray) -> None:
        self._record = record
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % MESSAGE
        acks = []
        for start in range(0, whole, MESSAGE):
            self._record += data[start : start + HEAD.size]
            acks.append(ACK.pack(HEAD.unpack_from(data, start)[1]))
        self._rest = data[whole:]
        if acks and self._transport is not None:
            self._transport.write(b"".join(acks))


async def serve(ports: list[int], server_pem: Path, record: bytearray) -> None:
    """Serve until standard input ends."""
    small_buffers()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server_pem)
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Hub(record), "127.0.0.1", port, ssl=context, backlog=4096)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> int:
    """The entry point of the process."""
    record = bytearray()
    asyncio.run(serve([int(port) for port in sys.argv[3:]], Path(sys.argv[1]), record))
    Path(sys.argv[2]).write_bytes(record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
