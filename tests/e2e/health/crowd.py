"""A crowd that connects to one of relay's HTTP ports and asks nothing, or never to the end."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from contextlib import suppress

BEGINNING = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Never: "
LOOPBACK = [f"127.0.{third}.{fourth}" for third in range(1, 5) for fourth in range(1, 251)]


class Crowd:
    """Connections of those who ask nothing, from the addresses `sources` in turn.

    With `drip` each sends the beginning of a request, and a byte of its next header at each `stir`. Whoever is thrown
    out comes back at the next `stir`.
    """

    def __init__(self, address: tuple[str, int], sources: Sequence[str], *, drip: bool = False) -> None:
        self._address = address
        self._sources = itertools.cycle(sources)
        self._drip = drip
        self._members: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_error: object) -> None:
        for member in self._members:
            member.close()

    def grow(self, count: int) -> None:
        """So many more; none is waited for."""
        for _ in range(count):
            member = socket.socket()
            self._members.append(member)
            member.setblocking(False)
            # Ports are chosen at connect(2), for 5,000 from one address would otherwise each look for their own.
            member.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            member.bind((next(self._sources), 0))
            with suppress(BlockingIOError):
                member.connect(self._address)
            if self._drip:
                with suppress(OSError):
                    member.send(BEGINNING)

    def stir(self) -> int:
        """Those who are still there go on; those who are not come back. How many were there."""
        there, gone = [], 0
        for member in self._members:
            if self._gone(member):
                member.close()
                gone += 1
            else:
                there.append(member)
        self._members = there
        self.grow(gone)
        return len(there)

    def _gone(self, member: socket.socket) -> bool:
        try:
            if self._drip:
                member.send(b"x")
            return not member.recv(1000)
        except BlockingIOError:
            return False
        except OSError:
            return True
