"""asyncio's selector, waiting in a ring: `asyncio.SelectorEventLoop(RingSelector())`, or `RingLoop()`.

asyncio hears of its own descriptors (control channel, resolver, wake-up) as from any selector; the clients' bytes move
inside `select`, which returns only when asyncio has something to do: one of its descriptors is ready, a timer is due,
or what happened to a connection has scheduled a callback or a timer (`RingLoop` takes note of that).

asyncio's descriptors are in an epoll, and the ring waits for that: what a descriptor is good for, and that it is let go
of at once when asyncio closes it, is epoll's doing. (A poll in the ring is a reference to what it waits for: a listener
would accept, and a peer would not see the end, until the poll has been taken back.) The ring's poll of the epoll fires
once, and is armed again by the next `select`: so readiness is level-triggered, as asyncio expects.

How long to wait is told the ring once, as a timer of its own, and not with each entry: messages come and go without a
look at the clock.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import selectors
from time import monotonic
from typing import TYPE_CHECKING

from relay.engines.contract import NEVER
from relay.engines.ring import abi
from relay.engines.ring.reactor import LOOP_EPOLL, SLOT_BITS, TIMER, VALUE, Reactor

EPOLL_TAG, TIMER_TAG = LOOP_EPOLL << SLOT_BITS, TIMER << SLOT_BITS
UPDATE = 1 << VALUE  # of the timer's user_data: not the timer, but its change to an earlier time


class RingSelector(selectors.EpollSelector):
    """See the module. `reactor` is where an engine joins in. Raises OSError if there is no ring to be had."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        self.reactor.handlers[LOOP_EPOLL] = self._fired
        self.reactor.handlers[TIMER] = self._timed
        self._polled = False  # the ring's poll of the epoll is under way
        self._timer = NEVER  # when the ring's timer goes off, monotonic seconds
        self._timespec = ctypes.create_string_buffer(abi.TIMESPEC.size)
        self._timespec_address = ctypes.addressof(self._timespec)
        self._called = False  # somebody wants `select` to return

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        reactor = self.reactor
        self._called = timeout is not None and timeout <= 0
        deadline = NEVER if timeout is None or self._called else monotonic() + timeout
        while True:
            reactor.returning = self._called
            if not self._polled:
                self._poll()
            if deadline < self._timer:
                self._set_timer(deadline)
            reactor.run()
            ready = [] if self._polled else super().select(0)
            # Else it was a signal, whose handler has run by now, or a timer that somebody wanted before.
            if ready or self._called or monotonic() >= deadline:
                return ready

    def wake(self) -> None:
        """Have `select` return at the end of the ring's turn. To be called by what happens in it."""
        self._called = self.reactor.returning = True

    def close(self) -> None:
        super().close()
        self.reactor.close()

    def _poll(self) -> None:
        word = abi.IORING_OP_POLL_ADD | self.fileno() << abi.FD
        self.reactor.push(word, 0, 0, abi.POLLIN << abi.OP_FLAGS, EPOLL_TAG)
        self._polled = True

    def _fired(self, _user_data: int, result: int, _flags: int) -> None:
        if result < 0:
            raise OSError(-result, f"poll of the epoll: {os.strerror(-result)}")
        self._polled = False
        self.reactor.returning = True

    def _set_timer(self, deadline: float) -> None:
        """Have the ring's one timer go off then, which is earlier than it would."""
        seconds = int(deadline)
        abi.TIMESPEC.pack_into(self._timespec, 0, seconds, min(int((deadline - seconds) * 1e9) + 1, 999_999_999))
        push, absolute, update = self.reactor.push, abi.IORING_TIMEOUT_ABS, abi.IORING_TIMEOUT_UPDATE
        if self._timer == NEVER:
            push(abi.IORING_OP_TIMEOUT, 0, self._timespec_address, 1 | absolute << abi.OP_FLAGS, TIMER_TAG)
        else:
            word = abi.IORING_OP_TIMEOUT_REMOVE | abi.IOSQE_CQE_SKIP_SUCCESS
            push(word, self._timespec_address, TIMER_TAG, (absolute | update) << abi.OP_FLAGS, TIMER_TAG | UPDATE)
        self._timer = deadline

    def _timed(self, user_data: int, result: int, _flags: int) -> None:
        if user_data & UPDATE:
            return  # it came too late: the timer has just gone off, and says so itself
        if result != -errno.ETIME:
            raise OSError(-result, f"timer of the ring: {os.strerror(-result)}")
        self._timer = NEVER
        self.reactor.returning = True


class RingLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop on a ring. Raises OSError if there is no ring to be had."""

    _closed = True  # until asyncio's __init__: its __del__ asks, also of a loop that never came to be

    def __init__(self) -> None:
        self.ring_selector = RingSelector()
        super().__init__(self.ring_selector)

    if not TYPE_CHECKING:  # the stubs want a variadic generic for the arguments, which Python 3.11 can hardly write

        def call_soon(self, callback, *args, context=None):
            self.ring_selector.wake()
            handle = super().call_soon(callback, *args, context=context)
            if handle._source_traceback:  # asyncio's debug mode: whoever called comes last, not this method
                del handle._source_traceback[-1]
            return handle

        def call_at(self, when, callback, *args, context=None):
            self.ring_selector.wake()
            handle = super().call_at(when, callback, *args, context=context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
            return handle
