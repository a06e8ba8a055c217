"""One probe of an upstream address: a TCP connection that is reset as soon as it is established."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from relay.address import Address

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # lingering for zero seconds: close(2) sends RST, socket(7)


async def probe(address: Address, timeout: float) -> None:
    """Connect and reset. Raises OSError; TimeoutError, without an errno, after `timeout` seconds."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(sock, address)


def reason(error: OSError) -> str:
    """The cause in words, from the errno: asyncio's own text is "Connect call failed" and the address."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
