"""asyncio's selector, waiting in a ring: `asyncio.SelectorEventLoop(RingSelector())`, or `RingLoop()`.

asyncio hears of its own descriptors (control channel, resolver, wake-up) as from any selector; the clients' bytes move
inside `select`, which returns only when asyncio has something to do: one of its descriptors is ready, a timer is due,
or what happened to a connection has scheduled a callback or a timer (`RingLoop` takes note of that).

asyncio's descriptors are in an epoll, and the ring waits for that: what a descriptor is good for, and that it is let go
of at once when asyncio closes it, is epoll's doing. (A poll in the ring is a reference to what it waits for: a listener
would accept, and a peer would not see the end, until the poll has been taken back.) The ring's poll of the epoll fires
once, and is armed again by the next `select`: so readiness is level-triggered, as asyncio expects.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from time import monotonic
from typing import TYPE_CHECKING

from relay.engines.ring import abi
from relay.engines.ring.reactor import GUEST, SLOT_BITS, Reactor

GUEST_TAG = GUEST << SLOT_BITS


class RingSelector(selectors.EpollSelector):
    """See the module. `reactor` is where an engine joins in. Raises OSError if there is no ring to be had."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        self.reactor.handlers[GUEST] = self._fired
        self._armed = False  # the ring's poll of the epoll is under way
        self.called = False  # a callback or a timer was scheduled: `select` is to return

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.called = False
        turn, deadline = self.reactor.turn, None if timeout is None else monotonic() + timeout
        while True:
            if not self._armed:
                self._arm()
            left = None if deadline is None else deadline - monotonic()
            turn(0 if left is not None and left <= 0 else 1, left)
            ready = [] if self._armed else super().select(0)
            # A signal ends the wait as well; its handler has run by now, and what is left of the time goes on.
            if ready or self.called or (left is not None and left <= 0):
                return ready

    def close(self) -> None:
        super().close()
        self.reactor.close()

    def _arm(self) -> None:
        word = abi.IORING_OP_POLL_ADD | self.fileno() << abi.FD
        self.reactor.push(word, 0, 0, abi.POLLIN << abi.OP_FLAGS, GUEST_TAG)
        self._armed = True

    def _fired(self, _user_data: int, result: int, _flags: int) -> None:
        if result < 0:
            raise OSError(-result, f"poll of the epoll: {os.strerror(-result)}")
        self._armed = False


class RingLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop on a ring. Raises OSError if there is no ring to be had."""

    _closed = True  # until asyncio's __init__: its __del__ asks, also of a loop that never came to be

    def __init__(self) -> None:
        self.ring_selector = RingSelector()
        super().__init__(self.ring_selector)

    if not TYPE_CHECKING:  # the stubs want a variadic generic for the arguments, which Python 3.11 can hardly write

        def call_soon(self, callback, *args, context=None):
            self.ring_selector.called = True
            handle = super().call_soon(callback, *args, context=context)
            if handle._source_traceback:  # asyncio's debug mode: whoever called comes last, not this method
                del handle._source_traceback[-1]
            return handle

        def call_at(self, when, callback, *args, context=None):
            self.ring_selector.called = True
            handle = super().call_at(when, callback, *args, context=context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
            return handle
