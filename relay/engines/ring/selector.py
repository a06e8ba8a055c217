"""A selector for asyncio that waits in a ring: `asyncio.SelectorEventLoop(RingSelector())`, or `RingLoop()`.

The selector reports asyncio's own descriptors (control channel, resolver, wake-up) as any selector does. The clients'
bytes move inside `select`, which returns only when asyncio has something to do: one of its descriptors is ready, a
timer is due, or an event of a connection has scheduled a callback or a timer (`RingLoop` notices that).

asyncio's descriptors are registered in an epoll, and the ring polls the epoll. So epoll decides which descriptors can
be waited for, and drops one as soon as asyncio closes it. (A poll in the ring is a reference to its file: until it is
cancelled, a closed listener would go on accepting, and the peer of a closed socket would not see FIN.) The ring's poll
of the epoll completes once and is submitted again by the next `select`, which makes readiness level-triggered, as
asyncio expects.

The time to wait is a timer in the ring, set when asyncio's next deadline is earlier than the timer, and not an argument
of each entry: messages pass without a look at the clock.
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
from relay.engines.ring.reactor import LOOP_EPOLL, SLOT_BITS, TIMER, VALUE_SHIFT, Reactor

EPOLL_TAG, TIMER_TAG = LOOP_EPOLL << SLOT_BITS, TIMER << SLOT_BITS
UPDATE = 1 << VALUE_SHIFT  # in the timer's user_data: the operation that moves the timer to an earlier time


class RingSelector(selectors.EpollSelector):
    """See the module. An engine adds its operations to `reactor`. Raises OSError if the kernel refuses a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        self.reactor.handlers[LOOP_EPOLL] = self._on_epoll
        self.reactor.handlers[TIMER] = self._on_timer
        self._polled = False  # the ring's poll of the epoll is under way
        self._timer = NEVER  # when the ring's timer expires, monotonic seconds
        self._timespec = ctypes.create_string_buffer(abi.TIMESPEC.size)
        self._timespec_address = ctypes.addressof(self._timespec)
        self._return_requested = False  # `select` shall return at the end of the turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        reactor = self.reactor
        self._return_requested = timeout is not None and timeout <= 0
        deadline = NEVER if timeout is None or self._return_requested else monotonic() + timeout
        while True:
            reactor.returning = self._return_requested
            if not self._polled:
                self._poll_epoll()
            if deadline < self._timer:
                self._set_timer(deadline)
            reactor.run()
            ready = [] if self._polled else super().select(0)
            # Else a signal came, whose handler has run by now, or the timer of an earlier `select` expired.
            if ready or self._return_requested or monotonic() >= deadline:
                return ready

    def wake(self) -> None:
        """Make `select` return at the end of the ring's turn. To be called within the turn."""
        self._return_requested = self.reactor.returning = True

    def close(self) -> None:
        super().close()
        self.reactor.close()

    def _poll_epoll(self) -> None:
        word = abi.IORING_OP_POLL_ADD | self.fileno() << abi.FD
        self.reactor.push(word, 0, 0, abi.POLLIN << abi.OP_FLAGS, EPOLL_TAG)
        self._polled = True

    def _on_epoll(self, _user_data: int, result: int, _flags: int) -> None:
        if result < 0:
            raise OSError(-result, f"poll of the epoll: {os.strerror(-result)}")
        self._polled = False
        self.reactor.returning = True

    def _set_timer(self, deadline: float) -> None:
        """Set the ring's one timer to `deadline`, which is earlier than its present time."""
        seconds = int(deadline)
        abi.TIMESPEC.pack_into(self._timespec, 0, seconds, min(int((deadline - seconds) * 1e9) + 1, 999_999_999))
        push, absolute, update = self.reactor.push, abi.IORING_TIMEOUT_ABS, abi.IORING_TIMEOUT_UPDATE
        if self._timer == NEVER:
            push(abi.IORING_OP_TIMEOUT, 0, self._timespec_address, 1 | absolute << abi.OP_FLAGS, TIMER_TAG)
        else:
            word = abi.IORING_OP_TIMEOUT_REMOVE | abi.IOSQE_CQE_SKIP_SUCCESS
            push(word, self._timespec_address, TIMER_TAG, (absolute | update) << abi.OP_FLAGS, TIMER_TAG | UPDATE)
        self._timer = deadline

    def _on_timer(self, user_data: int, result: int, _flags: int) -> None:
        if user_data & UPDATE:
            return  # the update came too late: the timer has just expired, and posts its own completion
        if result != -errno.ETIME:
            raise OSError(-result, f"timer of the ring: {os.strerror(-result)}")
        self._timer = NEVER
        self.reactor.returning = True


class RingLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop on a ring. Raises OSError if the kernel refuses a ring."""

    _closed = True  # until asyncio's __init__ has run: its __del__ reads it, even if __init__ raised

    def __init__(self) -> None:
        self.ring_selector = RingSelector()
        super().__init__(self.ring_selector)

    if not TYPE_CHECKING:  # the stubs want a variadic generic for the arguments, which Python 3.11 can hardly write

        def call_soon(self, callback, *args, context=None):
            self.ring_selector.wake()
            handle = super().call_soon(callback, *args, context=context)
            if (
                handle._source_traceback
            ):  # asyncio's debug mode: the last frame shall be the caller's, not this method's
                del handle._source_traceback[-1]
            return handle

        def call_at(self, when, callback, *args, context=None):
            self.ring_selector.wake()
            handle = super().call_at(when, callback, *args, context=context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
            return handle
