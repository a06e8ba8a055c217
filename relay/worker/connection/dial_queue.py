"""The dial queue: where `dial.rate` or a route's rate limits dials, connections wait here for their turn, in order.

Turns are reserved in the token bucket that all workers share (`core.rates`), so the order holds across workers and the
reserved turns add up to the rate. When a connection leaves the queue, everyone behind it moves up one turn. A turn
that is left over goes to the next connection that enters, unless its time passes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from relay.core.rates import NANO, Late

T = TypeVar("T")


class DialQueue(Generic[T]):
    """A dial queue of one worker. At each queued connection's turn the event loop calls `ready` with it.

    `reserve` reserves the next turn (`Rates.dial`, `Rates.dial_on_route`) and returns its time; `clock` is the clock
    of that time, in monotonic nanoseconds.
    """

    def __init__(
        self,
        reserve: Callable[[], int | Late],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        ready: Callable[[T], None],
    ) -> None:
        self._reserve = reserve
        self._loop = loop
        self._clock = clock
        self._ready = ready
        self._queue: OrderedDict[T, None] = OrderedDict()
        self._turns: deque[int] = deque()  # times of the reserved turns, in order, nanoseconds
        self._timer: asyncio.TimerHandle | None = None

    def reserve_by(self, reserve: Callable[[], int | Late]) -> None:
        """Reserve further turns in this way, after a reload."""
        self._reserve = reserve

    def __len__(self) -> int:
        """The number of queued connections."""
        return len(self._queue)

    def enter(self, connection: T) -> bool | Late:
        """Ask for a turn. True: dial now. False: queued, `ready` will be called. Late: no turn soon enough."""
        if len(self._turns) > len(self._queue):
            self._queue[connection] = None  # takes the turn of a connection that has left
            return False
        turn = self._reserve()
        if isinstance(turn, Late):
            return turn
        if not self._queue and turn <= self._clock():
            return True
        self._turns.append(turn)
        self._queue[connection] = None
        if self._timer is None:
            self._set_timer()
        return False

    def leave(self, connection: T) -> None:
        """Remove a connection from the queue, if it is there."""
        self._queue.pop(connection, None)

    def _set_timer(self) -> None:
        seconds = max(0, self._turns[0] - self._clock()) / NANO
        self._timer = self._loop.call_later(seconds, self._turn_due)

    def _turn_due(self) -> None:
        self._timer = None
        now = self._clock()
        while self._turns and self._turns[0] <= now:
            self._turns.popleft()
            if self._queue:
                connection, _ = self._queue.popitem(last=False)
                self._loop.call_soon(self._ready, connection)
        if self._turns:
            self._set_timer()
