"""Memory of prereads: bytes received from clients before an upstream is dialled, counted over all connections.

The bytes of prereads that are still partial are also bounded. A hello or a PROXY header that comes in one piece is
counted only until its upstream is connected. A partial one is kept until its timeout, and an attacker could send
thousands of them.
"""

from __future__ import annotations

import sys
from typing import Generic, TypeVar

SHARE = 4  # partial prereads may take 1 / SHARE of `limits.held_bytes`

T = TypeVar("T")


class PrereadBudget(Generic[T]):
    """Bytes of connections that have no upstream yet. `held_limit` is in bytes; 0: no limit."""

    def __init__(self, held_limit: int) -> None:
        self._partial_limit = held_limit // SHARE if held_limit else sys.maxsize
        self._partial: dict[T, int] = {}  # bytes by connection, oldest preread first
        self._partial_bytes = 0
        self.whole: dict[T, int] = {}  # bytes by connection that waits for its upstream; read-only for others
        self.bytes = 0  # of partial and whole prereads

    def add_partial(self, item: T, size: int) -> None:
        """Count `size` more bytes of a preread that is still partial."""
        self._partial[item] = self._partial.get(item, 0) + size
        self._partial_bytes += size
        self.bytes += size

    def complete(self, item: T, size: int) -> None:
        """Count a preread as whole: its `size` bytes are kept until its upstream is connected."""
        if self._partial:
            self.forget(item)
        self.whole[item] = size
        self.bytes += size

    def forget(self, item: T) -> None:
        """Stop counting a connection's bytes: they were sent to the upstream, or dropped."""
        size = self._partial.pop(item, 0)
        self._partial_bytes -= size
        self.bytes -= size + self.whole.pop(item, 0)

    def over_budget(self) -> T | None:
        """The oldest partial preread, if all partial ones together exceed their limit.

        A preread that is the only partial one is always within it.
        """
        if self._partial_bytes <= self._partial_limit or len(self._partial) < 2:
            return None
        return next(iter(self._partial))


class PrereadBuffer:
    """The bytes received from one client before an upstream is dialled."""

    __slots__ = ("data", "least", "limit")

    def __init__(self, limit: int) -> None:
        self.data: bytes | bytearray = b""  # bytes while it is one piece, as nearly all hellos are; no copy then
        self.limit = limit  # most bytes to receive in all
        self.least = 0  # bytes in all below which the handler is not called

    def add(self, part: bytes) -> bool:
        """Append `part`; True if there is enough for the handler to be called."""
        if not self.data:
            self.data = part
        elif type(self.data) is bytearray:
            self.data += part
        else:
            self.data = bytearray(self.data) + part
        return len(self.data) >= min(self.least, self.limit)

    @property
    def room(self) -> int:
        """Bytes that may still be received."""
        return self.limit - len(self.data)
