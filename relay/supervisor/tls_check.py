"""A TLS handshake with an upstream, for health checks: its certificate is verified as a device would verify it.

A private endpoint accepts TCP long before, and after, the hub behind it answers. The handshake asks for the upstream's
name (SNI), verifies the certificate's chain against the system's trust store and its name against the upstream's, and
ends with close_notify and FIN, so that the upstream sees a complete connection. No application data is sent, and no
client certificate.

The handshake runs on the event loop, over memory buffers: each of its steps takes less than two milliseconds
(docs/performance.md), and nothing waits but the loop itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from pathlib import Path

CHUNK = 1 << 15  # bytes; a server's whole first flight is smaller
CLOSE_TIMEOUT = 1.0  # seconds, at most, to wait for the upstream's FIN after the handshake
TRUST_AGE = 3600.0  # seconds after which the trust store is read anew: packages replace it while relay runs

# Codes of OpenSSL's verification (x509_vfy.h) that an operator does something different about.
_CERT_NOT_YET_VALID, _CERT_EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_WRONG_NAME = frozenset({62, 64})


class HandshakeError(Exception):
    """The upstream answers on TCP, but the TLS handshake with it failed. The text says why."""


class TrustStore:
    """The system's trust store, as OpenSSL finds it: SSL_CERT_FILE and SSL_CERT_DIR, else the paths built into it."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._read_at = 0.0  # monotonic seconds
        self._lock = threading.Lock()

    async def context(self) -> ssl.SSLContext:
        """The context for a client that verifies. Reading the store takes tens of milliseconds: a thread does it."""
        if self._context is None or time.monotonic() - self._read_at > TRUST_AGE:
            return await asyncio.to_thread(self._load)
        return self._context

    def _load(self) -> ssl.SSLContext:
        with self._lock:  # checks that begin together share one reading
            if self._context is None or time.monotonic() - self._read_at > TRUST_AGE:
                self._context = ssl.create_default_context()
                self._read_at = time.monotonic()
            return self._context


def trust_problem() -> str:
    """Why no certificate can be verified on this machine; empty if the trust store has something in it."""
    paths = ssl.get_default_verify_paths()  # those that do not exist are None
    if paths.cafile and Path(paths.cafile).stat().st_size:
        return ""
    if paths.capath and any(os.scandir(paths.capath)):
        return ""
    places = " and ".join(
        os.environ.get(variable) or built_in
        for variable, built_in in (
            (paths.openssl_cafile_env, paths.openssl_cafile),
            (paths.openssl_capath_env, paths.openssl_capath),
        )
    )
    return (
        f"no certificate authority in {places}, so no upstream can be verified: install the package ca-certificates, "
        f"or set {paths.openssl_cafile_env} to a file of authorities"
    )


async def handshake(sock: socket.socket, name: str, trust: TrustStore, *, first: bytes = b"") -> float:
    """Do a handshake over a connected socket that does not block, and send close_notify; `close` is left to do.

    Returns when the certificate expires, in seconds since the epoch. `first` is sent before the handshake. Raises
    HandshakeError and OSError; the caller bounds the time.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = (await trust.context()).wrap_bio(incoming, outgoing, server_hostname=name)
    loop = asyncio.get_running_loop()
    outgoing.write(first)
    while True:
        done = True
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            await _flush(sock, outgoing)  # the alert that says why, for the upstream's own log
            raise HandshakeError(_reason(error, name)) from None
        await _flush(sock, outgoing)
        if done:
            break
        data = await loop.sock_recv(sock, CHUNK)
        if not data:
            raise HandshakeError("TLS handshake: the upstream closed the connection")
        incoming.write(data)
    certificate = tls.getpeercert()
    assert certificate is not None
    try:
        tls.unwrap()
    except ssl.SSLError:  # close_notify is written; the upstream's own is not waited for
        pass
    await _flush(sock, outgoing)
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


async def close(sock: socket.socket) -> None:
    """Send FIN and read up to the upstream's, for CLOSE_TIMEOUT seconds at most.

    To close a socket with data unread would send a reset.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            while await asyncio.get_running_loop().sock_recv(sock, CHUNK):
                pass
    except OSError:  # it has reset the connection, or does not close it: the check has its result already
        pass


async def _flush(sock: socket.socket, outgoing: ssl.MemoryBIO) -> None:
    if data := outgoing.read():
        await asyncio.get_running_loop().sock_sendall(sock, data)


def _reason(error: ssl.SSLError, name: str) -> str:
    """What went wrong, in the words that an operator looks for."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        words = (error.reason or str(error)).lower().replace("_", " ")
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
            words = f"the answer is no TLS ({words})"
        return f"TLS handshake: {words}"
    code = error.verify_code
    if code == _CERT_EXPIRED:
        return "certificate expired"
    if code == _CERT_NOT_YET_VALID:
        return "certificate not valid yet: is the clock right?"
    if code in _WRONG_NAME:
        return f"certificate of another name: not valid for {name}"
    if code in _UNKNOWN_AUTHORITY:
        return f"certificate of an unknown authority: {error.verify_message}"
    return f"certificate: {error.verify_message}"
