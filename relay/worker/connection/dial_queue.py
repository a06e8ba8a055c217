"""When a dial may begin, where `dial.rate` limits them: connections that wait for their turn, first come, first served.

Turns are reserved in the bucket that all workers share (`core.rates`), so the order holds across workers and what is
reserved adds up to the rate. A connection that leaves the queue leaves its turn to those behind it, and so each moves
up; a turn that nobody is left for serves the next one to come, unless its time passes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from relay.core.rates import NANO, Late, Rates

T = TypeVar("T")


class DialQueue(Generic[T]):
    """The queue of one worker. `ready` is called for each one that has waited, from the event loop, at its turn.

    `clock` is monotonic nanoseconds, the same as that of `rates`.
    """

    def __init__(
        self, rates: Rates, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], ready: Callable[[T], None]
    ) -> None:
        self._rates = rates
        self._loop = loop
        self._clock = clock
        self._ready = ready
        self._queue: OrderedDict[T, None] = OrderedDict()
        self._turns: deque[int] = deque()  # reserved, in order, nanoseconds
        self._timer: asyncio.TimerHandle | None = None

    def set_rates(self, rates: Rates) -> None:
        """Turns that are reserved from now on are these rates'."""
        self._rates = rates

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    def enter(self, one: T) -> bool | Late:
        """True: it may begin now. False: it waits, and `ready` will be called. Late: there is no turn for it."""
        if len(self._turns) > len(self._queue):
            self._queue[one] = None  # the turn of one that has left
            return False
        turn = self._rates.dial()
        if isinstance(turn, Late):
            return turn
        if not self._queue and turn <= self._clock():
            return True
        self._turns.append(turn)
        self._queue[one] = None
        if self._timer is None:
            self._set_timer()
        return False

    def leave(self, one: T) -> None:
        """It has gone; nothing happens if it does not wait."""
        self._queue.pop(one, None)

    def _set_timer(self) -> None:
        seconds = max(0, self._turns[0] - self._clock()) / NANO
        self._timer = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock()
        while self._turns and self._turns[0] <= now:
            self._turns.popleft()
            if self._queue:
                one, _ = self._queue.popitem(last=False)
                self._loop.call_soon(self._ready, one)
        if self._turns:
            self._set_timer()
