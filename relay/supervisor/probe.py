"""One probe of an upstream address: a TCP connection, and with `Tls` a TLS handshake over it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import NamedTuple

from relay.address import Address
from relay.core import proxy_header
from relay.supervisor.tls_check import HandshakeError, TrustStore, close, handshake

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # lingering for zero seconds: close(2) sends RST, socket(7)


class Tls(NamedTuple):
    """That a probe makes a handshake, and how."""

    name: str  # asked for, and verified
    send_proxy: int = 0  # version of the PROXY header before it, for an upstream that expects one; 0: none


async def probe(address: Address, timeout: float, tls: Tls | None = None, trust: TrustStore | None = None) -> float:
    """Connect and reset; or with `tls`, connect, do a handshake and close.

    Returns when the certificate expires, in seconds since the epoch; 0 without `tls`. Raises OSError; TimeoutError,
    without an errno, after `timeout` seconds without a connection; HandshakeError, also after `timeout` seconds in all.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        if tls is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        expiry, connected = 0.0, False
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, address)
                connected = True
                if tls is not None:
                    assert trust is not None
                    first = proxy_header.build(tls.send_proxy, None, None) if tls.send_proxy else b""
                    expiry = await handshake(sock, tls.name, trust, first=first)
        except OSError as error:
            if not connected:
                raise
            if isinstance(error, TimeoutError) and not error.errno:
                raise HandshakeError(f"TLS handshake: not complete in {timeout:g} s") from None
            raise HandshakeError(f"TLS handshake: {reason(error)}") from None
        if tls is not None:
            await close(sock)
        return expiry


def reason(error: OSError) -> str:
    """The cause in words, from the errno: asyncio's own text is "Connect call failed" and the address."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
