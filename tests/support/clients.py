"""Clients on loopback, well-behaved and not, and checks of how their connections end. Every wait has a deadline."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

TIMEOUT = 10.0  # seconds that any single operation of a test may take
CHUNK = 1 << 16  # bytes
LINGER_RESET = struct.pack("ii", 1, 0)  # close(2) sends RST, socket(7)


def connect(address: tuple[str, int], source: str = "") -> socket.socket:
    """A client; every operation fails after TIMEOUT seconds."""
    return socket.create_connection(address, TIMEOUT, source_address=(source, 0) if source else None)


def receive(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes, or fewer if the peer sends FIN before."""
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(min(CHUNK, size - len(data)))):
        data += chunk
    return bytes(data)


def until(sock: socket.socket, end: bytes) -> bytes:
    """Receive up to and including `end`, byte by byte. Raises ConnectionError if the peer sends FIN before."""
    data = b""
    while not data.endswith(end):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError("the peer ended too early")
        data += byte
    return data


def drain(sock: socket.socket) -> bytes:
    """Receive everything up to FIN."""
    chunks = []
    while chunk := sock.recv(CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)


def exchange(sock: socket.socket, data: bytes = b"ping") -> bytes:
    """Send `data` to an echo server and receive as many bytes."""
    sock.sendall(data)
    return receive(sock, len(data))


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.close()


def was_reset(sock: socket.socket) -> bool:
    """Whether the connection ends with RST rather than with FIN; waits for its end."""
    try:
        drain(sock)
    except OSError as error:
        if error.errno in (errno.ECONNRESET, errno.EPIPE):
            return True
        raise
    return False


def refused(address: tuple[str, int], source: str = "") -> bool:
    """Whether a new connection is reset without having sent anything, perhaps even before connect(2) returns."""
    try:
        with connect(address, source) as client:
            return was_reset(client)
    except ConnectionResetError:
        return True


def echoes(address: tuple[str, int], data: bytes = b"are you there?") -> bool:
    """Whether a new connection through the relay to an echo server works, from connect to FIN."""
    with connect(address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return drain(client) == data


@dataclass
class Crowd:
    """Clients that connected at the same time: open sockets of those served, and the number of those reset."""

    served: list[socket.socket] = field(default_factory=list)
    refused: int = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self.served:
            self.served.pop().close()


def crowd(address: tuple[str, int], count: int, sources: Sequence[str] = ("",), data: bytes = b"me too") -> Crowd:
    """Connect `count` clients from each source at the same time, and wait until each is answered or reset."""
    result = Crowd()
    waiting: dict[socket.socket, bool] = {}  # True: the client has sent its data
    with selectors.DefaultSelector() as selector:
        sock: socket.socket
        for source in [*sources] * count:
            sock = socket.socket()
            sock.setblocking(False)
            if source:
                sock.bind((source, 0))
            waiting[sock] = False
            selector.register(sock, selectors.EVENT_WRITE)
            sock.connect_ex(address)
        deadline = time.monotonic() + 2 * TIMEOUT
        try:
            while waiting:
                assert time.monotonic() < deadline, f"{len(waiting)} of {count * len(sources)} without an answer"
                for key, _ in selector.select(1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    sock = key.fileobj
                    if _step(sock, waiting, selector, data, result):
                        selector.unregister(sock)
                        del waiting[sock]
        except BaseException:
            result.close()
            raise
        finally:
            for sock in waiting:
                sock.close()
    return result


def _step(
    sock: socket.socket, waiting: dict[socket.socket, bool], selector: selectors.BaseSelector, data: bytes, crowd: Crowd
) -> bool:
    """Handle one event of a client; True if it has been served or reset."""
    try:
        if not waiting[sock]:
            sock.send(data)
            waiting[sock] = True
            selector.modify(sock, selectors.EVENT_READ)
            return False
        assert sock.recv(len(data)) == data, "ended without an answer and without a reset"
    except (ConnectionResetError, BrokenPipeError):
        crowd.refused += 1
        sock.close()
    else:
        sock.settimeout(TIMEOUT)
        crowd.served.append(sock)
    return True
