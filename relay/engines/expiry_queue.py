"""A priority queue by expiry time that holds each item once, and from which any item can be removed."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

DEAD_ALLOWANCE = 64  # dead entries that are not worth rebuilding the heap for


class ExpiryQueue(Generic[T]):
    """A heap with lazy deletion: it is rebuilt once dead entries outnumber live ones by more than DEAD_ALLOWANCE."""

    def __init__(self) -> None:
        self.live: dict[T, int] = {}  # number of each queued item's entry; read-only for others
        self._entries: list[tuple[float, int, T]] = []  # the heap: time, entry number (settles ties), item
        self._number = 0

    def __len__(self) -> int:
        return len(self.live)

    def add(self, item: T, time: float) -> None:
        """Queue an item, unless it is queued already: then its first time stays."""
        if item not in self.live:
            self._number += 1
            self.live[item] = self._number
            heapq.heappush(self._entries, (time, self._number, item))

    def discard(self, item: T) -> None:
        """Remove an item, if it is queued."""
        if self.live.pop(item, None) is None:
            return
        if not self.live:
            self._entries.clear()
        elif len(self._entries) > 2 * len(self.live) + DEAD_ALLOWANCE:
            self._entries = [entry for entry in self._entries if self.live.get(entry[2]) == entry[1]]
            heapq.heapify(self._entries)

    def pop(self) -> T:
        """Remove and return the item with the earliest time. Raises IndexError if the queue is empty."""
        while True:
            _, number, item = heapq.heappop(self._entries)
            if self.live.get(item) == number:
                del self.live[item]
                return item
