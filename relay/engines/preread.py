"""What clients have sent before bytes flow, and what of it is not whole: counted, and the latter bounded.

A hello or a PROXY header that comes in one piece passes through here without a trace until an upstream is dialled. One
that does not come whole waits for its timeout, and thousands of them for as long as somebody sends new ones.
"""

from __future__ import annotations

import sys
from typing import Generic, TypeVar

SHARE = 4  # part of `limits.held_bytes` that hellos which are not whole may take: 1 / SHARE

T = TypeVar("T")


class PrereadBudget(Generic[T]):
    """Bytes of connections that have no upstream yet. `held_limit` is in bytes, 0 for none."""

    def __init__(self, held_limit: int) -> None:
        self._most = held_limit // SHARE if held_limit else sys.maxsize
        self._unfinished: dict[T, int] = {}  # bytes, by connection, the one first that was unfinished first
        self._unfinished_bytes = 0
        self.whole: dict[T, int] = {}  # bytes that a handler has until an upstream is there; not to be changed outside
        self.bytes = 0  # in all

    def grow(self, item: T, size: int) -> None:
        """So many bytes more have come, and it is not whole."""
        self._unfinished[item] = self._unfinished.get(item, 0) + size
        self._unfinished_bytes += size
        self.bytes += size

    def finish(self, item: T, size: int) -> None:
        """It has all come, so many bytes, and waits for an upstream."""
        if self._unfinished:
            self.forget(item)
        self.whole[item] = size
        self.bytes += size

    def forget(self, item: T) -> None:
        """Its bytes have gone where they were to go, or are dropped."""
        size = self._unfinished.pop(item, 0)
        self._unfinished_bytes -= size
        self.bytes -= size + self.whole.pop(item, 0)

    def too_much(self) -> T | None:
        """The one that has been unfinished for longest, if all of them together take more than they may.

        Not if it is alone: somebody may always speak.
        """
        if self._unfinished_bytes <= self._most or len(self._unfinished) < 2:
            return None
        return next(iter(self._unfinished))


class PrereadBuffer:
    """What was received from a client before anything was dialled."""

    __slots__ = ("data", "least", "limit")

    def __init__(self, limit: int) -> None:
        self.data: bytes | bytearray = b""  # nearly all hellos come in one piece, and are kept as it came
        self.limit = limit  # bytes in all
        self.least = 0  # bytes in all that the handler wants to see

    def add(self, part: bytes) -> bool:
        """Keep what has come; whether the handler is to be told."""
        if not self.data:
            self.data = part
        elif type(self.data) is bytearray:
            self.data += part
        else:
            self.data = bytearray(self.data) + part
        return len(self.data) >= min(self.least, self.limit)

    @property
    def room(self) -> int:
        """Bytes that may still come."""
        return self.limit - len(self.data)
