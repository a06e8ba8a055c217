"""What the ring engine waits for on a side: a receive that brings messages, a poll, or nothing but its end.

`watch` decides it from how the side and its peer stand. It can be called at any time, as often as one likes: it changes
only what is not as it should be, and is called again when an operation that it asked to end has ended.

A poll of the ring's always asks for EPOLLRDHUP as well (IO_POLL_UNMASK, io_uring/poll.c): from the peer's FIN on it
ends at once, over and over. So it cannot watch for a reset alone on a side that may not be read now or has sent its
FIN, nor wait for room on a side that has. Those sides are in an epoll, edge-triggered, and the ring polls that. For a
reset they are put there by the next tick, since most are not in that state for long.
"""

from __future__ import annotations

import select
from typing import Protocol

from relay.engines.ring import abi
from relay.engines.ring.reactor import SLOT_BITS, WATCHED, Reactor
from relay.engines.ring.records import ARMED, CANCELLING, Side
from relay.engines.ring.slots import POLL_IN_TAG, POLL_OUT_TAG, Slots

# `Side.poll_in`: in the epoll, or to be at the next tick; a poll for anything; one that was asked to end.
WATCH, READABLE, ENDING = 1, 2, 3
POLLED, IN_EPOLL = 1, 2  # `Side.poll_out`
_TAG = WATCHED << SLOT_BITS

# Without a try at once (POLL_FIRST): what it brought might be told before the failure of a send that is submitted with
# it.
SINGLE = abi.IORING_OP_RECV | abi.IOSQE_BUFFER_SELECT | abi.IORING_RECVSEND_POLL_FIRST
MULTISHOT = SINGLE | abi.IORING_RECV_MULTISHOT

_POLL = abi.IORING_OP_POLL_ADD
_POLL_IN = abi.POLLIN << abi.OP_FLAGS


class Watcher(Protocol):
    """Who is told what the epoll told."""

    def writable(self, side: Side) -> None:
        """It may take bytes again."""

    def hung_up(self, side: Side) -> None:
        """An error or a hang-up; the side is not read now."""


class Interest:
    """Arms and ends receives and polls. While `under_pressure`, every side is read by hand (see `pump`)."""

    def __init__(self, reactor: Reactor, slots: Slots, watcher: Watcher, *, multishot: bool) -> None:
        self._push = reactor.push
        self._cancel = slots.cancel
        self.receive = MULTISHOT if multishot else SINGLE
        self.one_by_one = not multishot
        self.under_pressure = False
        self._watcher = watcher
        self._epoll = select.epoll()
        self._watched: dict[int, Side] = {}  # by descriptor: those in the epoll
        self._later: list[Side] = []
        self._polled = False  # a poll of the epoll is under way
        reactor.handlers[WATCHED] = self._on_watched

    def watch(self, side: Side) -> None:
        """Wait for what `side` may do next, as it stands now."""
        link, peer = side.link, side.peer
        if link is None:
            return
        if peer is None and link.preread is not None and not side.ended:
            self._poll_in(side, READABLE)
        elif peer is None or side.ended or peer.held is not None:
            if side.armed:
                self._end_receive(side)
            elif side.dropping:
                self._poll_in(side, READABLE)
            elif not (side.ended and side.finished):  # both ends closed in good order look like a reset to a poll
                self._watch_for_reset(side)
        elif side.bulk or self.under_pressure:
            side.bulk = True
            if side.armed:
                self._end_receive(side)
            else:
                self._poll_in(side, READABLE)
        else:
            if side.poll_in:
                self._poll_in(side, 0)
            if not side.armed:
                side.armed = ARMED
                side.busy += 1
                self._push(self.receive | side.fd << abi.FD, 0, 0, 0, side.slot)

    def watch_out(self, side: Side) -> None:
        """Wait until `side` takes bytes again."""
        if not side.poll_out:
            side.poll_out = POLLED
            side.busy += 1
            self._push(_POLL | side.fd << abi.FD, 0, 0, abi.POLLOUT << abi.OP_FLAGS, side.slot | POLL_OUT_TAG)

    def poll_in(self, side: Side) -> None:
        """Wait until something comes from a side that nothing else is waited for on."""
        side.poll_in = READABLE
        side.busy += 1
        self._push(_POLL | side.fd << abi.FD, 0, 0, _POLL_IN, side.slot | POLL_IN_TAG)

    def _end_receive(self, side: Side) -> None:
        if side.armed == ARMED:
            side.armed = CANCELLING
            self._cancel(side.slot)

    def _poll_in(self, side: Side, wanted: int) -> None:
        """Have that poll (0: none) in place of another that is under way."""
        if side.poll_in == WATCH:
            side.poll_in = 0
            self._register(side)
        if side.poll_in == wanted:
            return
        if side.poll_in == 0:
            self.poll_in(side)
        elif side.poll_in != ENDING:
            side.poll_in = ENDING
            self._cancel(side.slot | POLL_IN_TAG)

    # --- sides in the epoll ---------------------------------------------------------------------------------------

    def watch_out_by_epoll(self, side: Side) -> None:
        """Wait until `side` takes bytes again, where it is known to take none now."""
        if not side.poll_out:
            side.poll_out = IN_EPOLL
            self._register(side)
            self._poll_epoll()

    def tick(self) -> None:
        """Put those into the epoll that still are to be watched for a reset."""
        later, self._later = self._later, []
        for side in later:
            if side.poll_in == WATCH and side.fd >= 0:
                self._register(side)
        self._poll_epoll()

    def forget(self, side: Side) -> None:
        """`side` is about to be closed."""
        side.poll_in = 0 if side.poll_in == WATCH else side.poll_in
        side.poll_out = 0 if side.poll_out == IN_EPOLL else side.poll_out
        self._register(side)

    def _watch_for_reset(self, side: Side) -> None:
        if side.poll_in == 0:
            side.poll_in = WATCH
            self._later.append(side)
        elif side.poll_in == READABLE:
            self._poll_in(side, 0)

    def _register(self, side: Side) -> None:
        """Have the side in the epoll for what it is to be watched for. Errors and hang-ups are always told."""
        fd = side.fd
        if side.poll_in == WATCH or side.poll_out == IN_EPOLL:
            mask = select.EPOLLET | (select.EPOLLOUT if side.poll_out == IN_EPOLL else 0)
            if fd in self._watched:
                self._epoll.modify(fd, mask)
            else:
                self._watched[fd] = side
                self._epoll.register(fd, mask)
        elif self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _poll_epoll(self) -> None:
        if self._watched and not self._polled:
            self._polled = True
            self._push(_POLL | self._epoll.fileno() << abi.FD, 0, 0, abi.POLLIN << abi.OP_FLAGS, _TAG)

    def _on_watched(self, _user_data: int, _result: int, _flags: int) -> None:
        self._polled = False
        for fd, mask in self._epoll.poll(0):
            side = self._watched.get(fd)
            if side is not None and mask & select.EPOLLOUT and side.poll_out == IN_EPOLL:
                side.poll_out = 0
                self._register(side)
                self._watcher.writable(side)
            if side is not None and side.fd == fd and mask & (select.EPOLLERR | select.EPOLLHUP):
                self._watcher.hung_up(side)
        self._poll_epoll()

    def close(self) -> None:
        """Let go of the epoll. No side is watched any more."""
        self._epoll.close()
