"""The peers: plain blocking sockets with a timeout, and threads that send or receive until the end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterable, Iterator

from relay.address import Address
from tests.engines.running import DEADLINE

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
RESET = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close(2) sends RST


def family_of(host: str) -> socket.AddressFamily:
    """The family of a literal address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address_of(sock: socket.socket) -> Address:
    """Where a listening socket listens, as a client would dial it."""
    host, port = sock.getsockname()[:2]
    return (host, port)


def listening(host: str, backlog: int = 1024, buffers: int = 0) -> socket.socket:
    """A listening socket; `buffers`: bytes of kernel buffer for what it accepts, 0 for the kernel's choice."""
    sock = socket.socket(family_of(host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.settimeout(DEADLINE)
    _limit(sock, buffers)
    sock.bind((host, 0))
    sock.listen(backlog)
    return sock


def connected(address: Address, buffers: int = 0) -> socket.socket:
    """A client.

    An engine may accept and reset it before connect(2) returns, which would then fail. So this waits for the end of the
    handshake without reading the socket's error: a test sees a reset or a refused connection at its next operation.
    """
    sock = socket.socket(family_of(address[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _limit(sock, buffers)
        number = sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if not poll.poll(DEADLINE * 1000):
            raise TimeoutError("nobody answered the SYN")
        sock.settimeout(DEADLINE)
    except BaseException:
        sock.close()
        raise
    return sock


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection in a listener's queue."""
    sock, _ = listener.accept()
    sock.settimeout(DEADLINE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _limit(sock: socket.socket, buffers: int) -> None:
    if buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def vanish(sock: socket.socket) -> None:
    """Drop all incoming segments: the other end gets no acknowledgement, as if the cable had been cut."""
    drop = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # struct sock_filter: BPF_RET, 0 bytes
    program = struct.pack("@HP", 1, ctypes.addressof(drop))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def reappear(sock: socket.socket) -> None:
    """Undo `vanish`."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def end(sock: socket.socket) -> None:
    """Send FIN; go on receiving."""
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes. Raises AssertionError at an earlier FIN."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 18))
        if not part:
            raise AssertionError(f"ended after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def receive_to_end(sock: socket.socket) -> bytes:
    """Receive everything up to FIN. Raises ConnectionResetError at a reset."""
    data = bytearray()
    while part := sock.recv(1 << 18):
        data += part
    return bytes(data)


def receive_to_reset(sock: socket.socket) -> bytes:
    """Receive everything up to RST. Raises AssertionError at FIN: the stream would look complete."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := sock.recv(1 << 18):
            data += part
        raise AssertionError(f"a clean end after {len(data)} bytes instead of a reset")
    return bytes(data)


def wait_reset(sock: socket.socket) -> None:
    """Wait for RST without taking anything from the receive queue; passes FIN over."""
    poll = select.poll()
    poll.register(sock, select.POLLERR)
    assert poll.poll(DEADLINE * 1000), "no reset"
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "hung up without an error"


def push(sock: socket.socket, data: bytes, total: int = 0) -> int:
    """Send `data` repeatedly until the kernel takes no more; returns `total`, sent before, plus what it took."""
    with contextlib.suppress(BlockingIOError):
        while True:
            # Not sock.send(), which would block until the socket's timeout.
            total += os.write(sock.fileno(), data[total % len(data) :])
    return total


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other side's kernel has not acknowledged, tcp(7) SIOCOUTQ; a FIN under way counts as one."""
    (size,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(size)


def pattern(seed: object, size: int) -> bytes:
    """Random bytes, the same for the same seed."""
    return random.Random(repr(seed)).randbytes(size)


def repeated(data: bytes, size: int) -> bytes:
    """`data` repeated and cut to `size` bytes: what `push` has sent."""
    return (data * (size // len(data) + 1))[:size]


def blocks(seed: object, count: int, size: int = 1 << 20) -> Iterator[bytearray]:
    """A long stream of distinct blocks: one random block, each time with its number at the beginning."""
    block = bytearray(pattern(seed, size))
    for number in range(count):
        block[:8] = number.to_bytes(8, "big")
        yield block


class Sending(threading.Thread):
    """Sends parts one after the other, then FIN if `then_end`."""

    def __init__(self, sock: socket.socket, parts: Iterable[bytes | bytearray], *, then_end: bool = True) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.sent = 0  # bytes
        self.digest = hashlib.sha1()
        self.error: OSError | None = None
        self._parts = parts
        self._then_end = then_end
        self.start()

    def run(self) -> None:
        try:
            for part in self._parts:
                view = memoryview(part)
                self.digest.update(view)
                while view:
                    size = self.sock.send(view)
                    self.sent += size
                    view = view[size:]
            if self._then_end:
                end(self.sock)
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        """Wait until everything is sent."""
        self.join(DEADLINE * 3)
        assert not self.is_alive(), f"blocked after {self.sent} bytes"
        if self.error is not None:
            raise self.error


class Receiving(threading.Thread):
    """Receives until the end, whichever it is."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.received = 0  # bytes
        self.digest = hashlib.sha1()
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        buffer = bytearray(1 << 18)
        view = memoryview(buffer)
        try:
            while size := self.sock.recv_into(buffer):
                self.digest.update(view[:size])
                self.received += size
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        """Wait for FIN. Raises the error that came instead."""
        self.join(DEADLINE * 3)
        assert not self.is_alive(), f"no end after {self.received} bytes"
        if self.error is not None:
            raise self.error
