"""A deadline for a whole exchange over a connected socket.

A socket's own timeout holds for each call: a server that sends a byte now and then would keep its client for ever.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Deadline:
    """Whether an exchange has been cut off."""

    def __init__(self) -> None:
        self.passed = False

    @contextmanager
    def over(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        """Shut `sock` down if the block takes longer than `seconds`: its calls then fail or find the end."""
        timer = threading.Timer(seconds, self._cut, (sock,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self, sock: socket.socket) -> None:
        self.passed = True
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
