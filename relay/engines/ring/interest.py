"""Which operation the ring engine has under way on a side: a receive, a poll, or a watch for a reset alone.

`Interest.watch` decides it from how the side and its peer stand, and brings the ring to it. It may be called at any
time and any number of times: it changes only what differs from the decision, and is called again when an operation that
it cancelled has completed.

A poll in the ring always includes EPOLLRDHUP (IO_POLL_UNMASK, io_uring/poll.c): from the peer's FIN on it completes at
once, again and again. So it can neither watch for a reset alone, on a side that must not be read now or has sent FIN,
nor wait for room on such a side. These sides are registered edge-triggered in an epoll, and the ring polls the epoll.
For a reset they are registered by the next tick, since most of them are not in that state for long.
"""

from __future__ import annotations

import select
from typing import Protocol

from relay.engines.ring import abi
from relay.engines.ring.reactor import SIDES_EPOLL, SLOT_BITS, Reactor
from relay.engines.ring.records import ARMED, CANCELLING, Side
from relay.engines.ring.slots import POLL_IN_TAG, POLL_OUT_TAG, Slots

# What `Interest.watch` decides for a side. UNCHANGED: both of its directions are over (FIN read and FIN sent), so
# nothing more is started. RESET: errors and hang-ups only. READABLE: a poll, after which the engine reads with recv(2).
# RECEIVE: a receive operation, which brings messages into the reactor's turn.
UNCHANGED, RESET, READABLE, RECEIVE = 0, 1, 2, 3
# `Side.poll_in` is 0, RESET (in the epoll, or registered there by the next tick), READABLE (a poll operation), or:
POLL_CANCELLING = 4  # a poll operation that was cancelled and has not completed yet
POLLED, IN_EPOLL = 1, 2  # `Side.poll_out`
_TAG = SIDES_EPOLL << SLOT_BITS

# POLL_FIRST: the receive is not tried when it is submitted. What it brought might otherwise be reported before the
# failure of a send submitted with it.
SINGLE = abi.IORING_OP_RECV | abi.IOSQE_BUFFER_SELECT | abi.IORING_RECVSEND_POLL_FIRST
MULTISHOT = SINGLE | abi.IORING_RECV_MULTISHOT

_FD = abi.FD  # looked up once: `watch` runs for each receive that is armed
_POLL = abi.IORING_OP_POLL_ADD
_POLL_IN = abi.POLLIN << abi.OP_FLAGS


class EpollHandler(Protocol):
    """Handles the events of sides in the epoll."""

    def writable(self, side: Side) -> None:
        """The socket of `side` takes bytes again."""

    def hung_up(self, side: Side) -> None:
        """The socket of `side`, which is not read now, reports an error or a hang-up."""


class Interest:
    """Starts and cancels receives and polls. While `under_pressure`, sides are polled and read with recv(2)."""

    def __init__(self, reactor: Reactor, slots: Slots, handler: EpollHandler, *, multishot: bool) -> None:
        self._push = reactor.push
        self._cancel = slots.cancel
        self.receive = MULTISHOT if multishot else SINGLE
        self.one_by_one = not multishot
        self.under_pressure = False  # all connections together hold too much
        self._handler = handler
        self._epoll = select.epoll()
        self._registered: dict[int, Side] = {}  # sides in the epoll, by descriptor
        self._to_register: list[Side] = []  # sides to watch for a reset from the next tick on
        self._epoll_polled = False  # the ring's poll of the epoll is under way
        reactor.handlers[SIDES_EPOLL] = self._on_epoll

    def watch(self, side: Side) -> None:
        """Decide what `side` waits for, then bring the ring to it.

        | the side                                       | waits for |
        | ---------------------------------------------- | --------- |
        | no peer yet, preread, FIN not read             | READABLE  |
        | no peer yet, otherwise                         | RESET     |
        | ended or peer holds bytes; `dropping`          | READABLE  |
        | ended and FIN sent                             | UNCHANGED |
        | ended or peer holds bytes, otherwise           | RESET     |
        | open; bulk or memory pressure                  | READABLE  |
        | open, otherwise                                | RECEIVE   |

        The first line that fits counts; `tests/engines/ring/test_interest.py` goes through all combinations. The
        decision is not a function or a look-up table of its own: either makes a call a fifth to a third slower.
        """
        link, peer = side.link, side.peer
        if link is None:
            return
        if peer is None:
            wanted = RESET if link.preread is None or side.ended else READABLE
        elif side.ended or peer.held is not None:
            wanted = READABLE if side.dropping else UNCHANGED if side.ended and side.finished else RESET
        elif side.bulk or self.under_pressure:
            side.bulk = True  # beyond the pressure, until a read brings little
            wanted = READABLE
        else:
            wanted = RECEIVE

        if wanted == RECEIVE:
            if side.poll_in:
                self._change_poll(side, 0)
            if not side.armed:
                side.armed = ARMED
                side.busy += 1
                self._push(self.receive | side.fd << _FD, 0, 0, 0, side.slot)
        elif side.armed:  # first the receive must end; its last completion calls this method again
            if side.armed == ARMED:
                side.armed = CANCELLING
                self._cancel(side.slot)
        elif wanted == READABLE:
            if side.poll_in == 0:
                self.poll_readable(side)
            elif side.poll_in != READABLE:
                self._change_poll(side, READABLE)
        elif wanted == RESET and side.poll_in != RESET:
            if side.poll_in == 0:
                side.poll_in = RESET
                self._to_register.append(side)
            else:
                self._change_poll(side, 0)

    def watch_out(self, side: Side) -> None:
        """Poll until `side` takes bytes again."""
        if not side.poll_out:
            side.poll_out = POLLED
            side.busy += 1
            self._push(_POLL | side.fd << abi.FD, 0, 0, abi.POLLOUT << abi.OP_FLAGS, side.slot | POLL_OUT_TAG)

    def poll_readable(self, side: Side) -> None:
        """Poll until something comes from `side`, on which no receive and no other such poll is under way."""
        side.poll_in = READABLE
        side.busy += 1
        self._push(_POLL | side.fd << abi.FD, 0, 0, _POLL_IN, side.slot | POLL_IN_TAG)

    def _change_poll(self, side: Side, wanted: int) -> None:
        """Replace what `poll_in` says by a poll (READABLE) or by nothing (0).

        A poll operation that is under way is cancelled first; its completion calls `watch` again.
        """
        if side.poll_in == RESET:
            side.poll_in = 0
            self._register(side)
        if side.poll_in == wanted:
            return
        if side.poll_in == 0:
            self.poll_readable(side)
        elif side.poll_in != POLL_CANCELLING:
            side.poll_in = POLL_CANCELLING
            self._cancel(side.slot | POLL_IN_TAG)

    # --- sides in the epoll ---------------------------------------------------------------------------------------

    def watch_out_by_epoll(self, side: Side) -> None:
        """Wait until `side`, which is known to take nothing now, takes bytes again."""
        if not side.poll_out:
            side.poll_out = IN_EPOLL
            self._register(side)
            self._poll_epoll()

    def tick(self) -> None:
        """Register the sides in the epoll that still wait for nothing but a reset."""
        sides, self._to_register = self._to_register, []
        for side in sides:
            if side.poll_in == RESET and side.fd >= 0:
                self._register(side)
        self._poll_epoll()

    def unregister(self, side: Side) -> None:
        """Take `side`, which is about to be closed, out of the epoll."""
        side.poll_in = 0 if side.poll_in == RESET else side.poll_in
        side.poll_out = 0 if side.poll_out == IN_EPOLL else side.poll_out
        self._register(side)

    def _register(self, side: Side) -> None:
        """Make the side's registration in the epoll match its fields. Errors and hang-ups are always reported."""
        fd = side.fd
        if side.poll_in == RESET or side.poll_out == IN_EPOLL:
            mask = select.EPOLLET | (select.EPOLLOUT if side.poll_out == IN_EPOLL else 0)
            if fd in self._registered:
                self._epoll.modify(fd, mask)
            else:
                self._registered[fd] = side
                self._epoll.register(fd, mask)
        elif self._registered.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _poll_epoll(self) -> None:
        if self._registered and not self._epoll_polled:
            self._epoll_polled = True
            self._push(_POLL | self._epoll.fileno() << abi.FD, 0, 0, abi.POLLIN << abi.OP_FLAGS, _TAG)

    def _on_epoll(self, _user_data: int, _result: int, _flags: int) -> None:
        self._epoll_polled = False
        for fd, mask in self._epoll.poll(0):
            side = self._registered.get(fd)
            if side is not None and mask & select.EPOLLOUT and side.poll_out == IN_EPOLL:
                side.poll_out = 0
                self._register(side)
                self._handler.writable(side)
            if side is not None and side.fd == fd and mask & (select.EPOLLERR | select.EPOLLHUP):
                self._handler.hung_up(side)
        self._poll_epoll()

    def close(self) -> None:
        """Close the epoll; no side is watched any more."""
        self._epoll.close()
