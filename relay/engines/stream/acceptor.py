"""How the stream engine takes connections from its listening sockets, and what it does when the machine runs short."""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable

from relay.engines.contract import Accepted, Action, Address, Handler, Refuse
from relay.engines.stream.link import RESET_ON_CLOSE
from relay.listener import ACCEPT_CAPACITY_ERRNOS

logger = logging.getLogger("relay.engine")

ACCEPTS = 64  # connections taken from one listener before the others get their turn

Begin = Callable[[socket.SocketType, Handler, Action], None]


class Acceptor:
    """The listening sockets of one engine. `begin` gets each connection that was not refused."""

    def __init__(self, epoll: select.epoll, begin: Begin) -> None:
        self._epoll = epoll
        self._begin = begin
        self._listeners: dict[int, tuple[socket.socket, Callable[[], tuple[int, Address]], int, Accepted]] = {}
        self._paused: list[int] = []
        self.pauses = 0

    def __contains__(self, fd: int) -> bool:
        return fd in self._listeners

    def add(self, sock: socket.socket, accepted: Accepted) -> None:
        """Accept on a listening socket from now on."""
        sock.setblocking(False)
        # `_accept` is what socket.accept() itself calls: it gives the descriptor without making a socket.socket, which
        # costs more than the system call.
        accept: Callable[[], tuple[int, Address]] = sock._accept  # type: ignore[attr-defined]
        self._listeners[sock.fileno()] = (sock, accept, sock.family, accepted)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def accept(self, fd: int) -> int:
        """Accept what is queued there, at most ACCEPTS; returns how many those were."""
        _, accept, family, accepted = self._listeners[fd]
        for count in range(ACCEPTS):
            try:
                client_fd, address = accept()
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in ACCEPT_CAPACITY_ERRNOS:
                    self._pause(fd, error)
                    return count
                continue  # the connection died in the queue, accept(2): ECONNABORTED, EPROTO, network errors
            # All of family, type and protocol given: the constructor then asks the kernel for none of them.
            client = socket.SocketType(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, client_fd)
            try:
                handler, action = accepted(address)
            except Exception:
                logger.exception("a connection could not be set up")
                client.setsockopt(*RESET_ON_CLOSE)
                client.close()
                continue
            if type(action) is Refuse:
                client.setsockopt(*RESET_ON_CLOSE)
                client.close()
                continue
            self._begin(client, handler, action)
        return ACCEPTS

    def resume(self) -> None:
        """Try the paused listeners again."""
        for fd in self._paused:
            self._epoll.register(fd, select.EPOLLIN)
        self._paused.clear()

    def close(self) -> None:
        """Accept what is queued, then close every listening socket."""
        self.resume()
        for fd, (sock, *_) in list(self._listeners.items()):
            while self.accept(fd) == ACCEPTS:
                pass
            del self._listeners[fd]
            if fd not in self._paused:
                self._epoll.unregister(fd)
            sock.close()
        self._paused.clear()

    def _pause(self, fd: int, error: OSError) -> None:
        """The machine is out of descriptors or memory: leave the queue alone for a while, instead of spinning."""
        self._epoll.unregister(fd)
        self._paused.append(fd)
        self.pauses += 1
        if self.pauses & (self.pauses - 1) == 0:  # 1, 2, 4, 8, …: a long shortage is told of, the log is not flooded
            logger.warning("accept paused: %s (pause %d)", os.strerror(error.errno or 0), self.pauses)
