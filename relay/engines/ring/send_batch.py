"""Several messages of one side in one send: a struct msghdr over the buffers that they came in."""

from __future__ import annotations

import ctypes

PARTS = 72  # a receive gives at most 33 buffers in one go, and two goes in one turn
_MSGHDR = 7  # words of a struct msghdr {name, namelen, iov, iovlen, control, controllen, flags}
_IOV, _IOVLEN = 2, 3


class SendBatch:
    """Grows while its send is prepared and not submitted; afterwards it tells what did not go."""

    __slots__ = ("_memory", "_words", "address", "buffers", "number")

    def __init__(self, number: int) -> None:
        self.number = number  # of the submission that it is
        self._memory = ctypes.create_string_buffer(8 * (_MSGHDR + 2 * PARTS))
        self._words = memoryview(self._memory).cast("B").cast("Q")
        self.address = ctypes.addressof(self._memory)
        self._words[_IOV] = self.address + 8 * _MSGHDR
        self.buffers: list[tuple[int, int]] = []  # (buffer, bytes in it)

    def add(self, buffer: int, address: int, size: int) -> None:
        """One message more."""
        at = _MSGHDR + 2 * len(self.buffers)
        self._words[at], self._words[at + 1] = address, size
        self.buffers.append((buffer, size))
        self._words[_IOVLEN] = len(self.buffers)

    @property
    def full(self) -> bool:
        """No further message fits."""
        return len(self.buffers) == PARTS
