"""A sendmsg batch: several messages of one side in one send, as a struct msghdr over the buffers they came in."""

from __future__ import annotations

import ctypes

PARTS = 72  # a multishot receive fills at most 33 buffers without a pause, and may do so twice in one turn
_MSGHDR = 7  # words of a struct msghdr {name, namelen, iov, iovlen, control, controllen, flags}
_IOV, _IOVLEN = 2, 3


class SendBatch:
    """Messages are added until the send is submitted; afterwards `buffers` says where the bytes not sent are."""

    __slots__ = ("_memory", "_words", "address", "buffers", "number")

    def __init__(self, number: int) -> None:
        self.number = number  # of its submission
        self._memory = ctypes.create_string_buffer(8 * (_MSGHDR + 2 * PARTS))
        self._words = memoryview(self._memory).cast("B").cast("Q")
        self.address = ctypes.addressof(self._memory)
        self._words[_IOV] = self.address + 8 * _MSGHDR
        self.buffers: list[tuple[int, int]] = []  # (buffer, bytes in it)

    def add(self, buffer: int, address: int, size: int) -> None:
        """Append a message."""
        at = _MSGHDR + 2 * len(self.buffers)
        self._words[at], self._words[at + 1] = address, size
        self.buffers.append((buffer, size))
        self._words[_IOVLEN] = len(self.buffers)

    @property
    def full(self) -> bool:
        """Whether no further message fits."""
        return len(self.buffers) == PARTS
