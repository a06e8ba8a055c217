"""Upstream servers that behave and misbehave, on loopback, on ports of the kernel's choice.

Each ends with its `with` block. `Upstream` runs a thread for each connection; `Echo` takes thousands in one.
"""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tests.support.clients import CHUNK, TIMEOUT, drain, receive, reset, until

Handler = Callable[[socket.socket], None]


class Upstream:
    """A server that calls `handler` for each connection in a thread of its own, then closes the connection.

    An OSError of the connection ends only its handler. `served` counts the connections.
    """

    def __init__(self, handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._tls = tls
        self.served = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
        bound = self._listening.getsockname()
        self.address: tuple[str, int] = (f"[{bound[0]}]" if ":" in bound[0] else bound[0], bound[1])

    def __enter__(self) -> Upstream:
        self._start(self._accept)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listening.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a server's thread did not end"

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.served += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock.settimeout(TIMEOUT)
                # Only with who speaks: a client that resets at once, as a probe does, would make SSLSocket.accept()
                # leave an open socket behind.
                if not sock.recv(1, socket.MSG_PEEK):
                    return
                sock = self._tls.wrap_socket(sock, server_side=True)  # takes the descriptor over
                sock.settimeout(None)
            with self._lock:
                self._open.add(sock)
            self._handler(sock)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()


class Echo:
    """A server that echoes everything, FIN included; one thread for all connections."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.served = 0
        self._listening = socket.create_server((host, port), backlog=4096)
        self._listening.setblocking(False)
        self._wake, self._end = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._pending: dict[socket.socket, bytearray] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]

    def __enter__(self) -> Self:
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._end, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._wake.close()
        self._thread.join(TIMEOUT)
        for sock in (self._listening, self._end, *self._pending):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._end:
                    return
                if sock is self._listening:
                    self._accept()
                    continue
                try:
                    self._move(sock, events)
                except OSError:
                    self._forget(sock)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, _ = self._listening.accept()
                sock.setblocking(False)
                self.served += 1
                self._pending[sock] = bytearray()
                self._selector.register(sock, selectors.EVENT_READ)

    def _move(self, sock: socket.socket, events: int) -> None:
        pending = self._pending[sock]
        if events & selectors.EVENT_READ:
            data = sock.recv(CHUNK)
            if not data:  # nothing can be pending: reading waits for writing
                self._forget(sock)
                return
            pending += data
        with contextlib.suppress(BlockingIOError):
            del pending[: sock.send(pending)]
        self._selector.modify(sock, selectors.EVENT_WRITE if pending else selectors.EVENT_READ)

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._pending[sock]
        sock.close()


# --- handlers of an Upstream ---------------------------------------------------------------------------------------


def hash_sink(sock: socket.socket) -> None:
    """Takes everything up to FIN, then answers with its SHA-256."""
    digest = hashlib.sha256()
    while data := sock.recv(CHUNK):
        digest.update(data)
    sock.sendall(digest.hexdigest().encode())


def sender(data: bytes) -> Handler:
    """Sends `data`, then FIN, then takes everything up to the client's FIN."""

    def handler(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        drain(sock)

    return handler


def resetter(size: int) -> Handler:
    """Resets the connection once it has got `size` bytes."""

    def handler(sock: socket.socket) -> None:
        receive(sock, size)
        reset(sock)

    return handler


def mute(sock: socket.socket) -> None:
    """Takes everything and never answers."""
    drain(sock)


def http_hello(sock: socket.socket) -> None:
    """Answers one HTTP request with "hello"."""
    until(sock, b"\r\n\r\n")
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    sock.shutdown(socket.SHUT_WR)
    drain(sock)


class Stuck:
    """A handler that never reads. `release` lets it go on and take everything."""

    def __init__(self) -> None:
        self._go_on = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        self._go_on.wait()
        drain(sock)

    def release(self) -> None:
        self._go_on.set()


@contextlib.contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    """An address that answers a connect with a reset: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@contextlib.contextmanager
def unanswering() -> Iterator[tuple[str, int]]:
    """An address that does not answer: the accept queue is full, so the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(server.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError("an accept queue of length 0 does not fill up")
        yield server.getsockname()
