"""Events that no call of an end waits for: progress of the other end, and errors of its own socket."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class Bell:
    """Wakes the tasks that wait for a change in a connection."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future


class Errors:
    """Reports a socket's error without clearing it and without reading: one epoll that waits for errors alone."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)

    def watch(self, sock: socket.socket, told: Callable[[], None]) -> None:
        self._told[sock.fileno()] = told
        self._epoll.register(sock.fileno(), select.EPOLLET)  # EPOLLERR and EPOLLHUP are always reported

    def forget(self, sock: socket.socket) -> None:
        del self._told[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, mask in self._epoll.poll(0):
            # EPOLLHUP alone also comes after two orderly ends.
            if mask & select.EPOLLERR and fd in self._told:
                self._told[fd]()
