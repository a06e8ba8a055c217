"""What has lived long enough and waits for its end: earliest first, each once, and any of them may leave before."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

SPARE = 64  # entries of those that have left, which are not worth being swept out


class ExpiryQueue(Generic[T]):
    """A queue by time. What leaves is only struck off; once that is more than what waits, it is swept out."""

    def __init__(self) -> None:
        self.waiting: dict[T, int] = {}  # by what waits, the number of its entry; not to be changed from outside
        self._entries: list[tuple[float, int, T]] = []  # a heap; the number settles ties
        self._number = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, item: T, time: float) -> None:
        """Let it wait, if it does not yet."""
        if item not in self.waiting:
            self._number += 1
            self.waiting[item] = self._number
            heapq.heappush(self._entries, (time, self._number, item))

    def discard(self, item: T) -> None:
        """It does not wait any more."""
        if self.waiting.pop(item, None) is None:
            return
        if not self.waiting:
            self._entries.clear()
        elif len(self._entries) > 2 * len(self.waiting) + SPARE:
            self._entries = [entry for entry in self._entries if self.waiting.get(entry[2]) == entry[1]]
            heapq.heapify(self._entries)

    def pop(self) -> T:
        """The one whose time came first; it does not wait any more. Raises IndexError if none waits."""
        while True:
            _, number, item = heapq.heappop(self._entries)
            if self.waiting.get(item) == number:
                del self.waiting[item]
                return item
