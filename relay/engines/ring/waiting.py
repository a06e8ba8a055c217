"""What the ring engine waits for on a side: a receive that brings messages, a poll, or nothing but a reset.

`watch` decides it from how the side and its peer stand. It can be called at any time, as often as one likes: it changes
only what is not as it should be, and is called again when an operation that it asked to end has ended.
"""

from __future__ import annotations

from relay.engines.ring import abi
from relay.engines.ring.link import ARMED, CANCELLING, Side
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.slots import POLL_IN_TAG, POLL_OUT_TAG, Slots

WATCH, READABLE, ENDING = 1, 2, 3  # `Side.poll_in`: for a reset alone; for anything; was asked to end

# Without a try at once (POLL_FIRST): what it brought might be told before the failure of a send that is submitted with
# it.
SINGLE = abi.IORING_OP_RECV | abi.IOSQE_BUFFER_SELECT | abi.IORING_RECVSEND_POLL_FIRST
MULTISHOT = SINGLE | abi.IORING_RECV_MULTISHOT

_POLL = abi.IORING_OP_POLL_ADD


class Waiting:
    """Arms and ends receives and polls. While `careful`, every side is read by hand (see `pump`)."""

    def __init__(self, reactor: Reactor, slots: Slots, *, multishot: bool) -> None:
        self._push, self._push_pair = reactor.push, reactor.push_pair
        self._cancel = slots.cancel
        self._receive = MULTISHOT if multishot else SINGLE
        self.one_by_one = not multishot
        self.careful = False

    def begin(self, client: Side, upstream: Side) -> None:
        """Bytes may flow between these two, and nothing is known of either yet: by far the most frequent."""
        client.armed = upstream.armed = ARMED
        client.busy += 1
        upstream.busy += 1
        word = self._receive
        self._push_pair(word | client.fd << 32, 0, 0, client.slot, word | upstream.fd << 32, upstream.slot)  # FD

    def watch(self, side: Side) -> None:
        """Wait for what `side` may do next, as it stands now."""
        link, peer = side.link, side.peer
        if link is None:
            return
        if peer is None and link.sniffing is not None and not side.ended:
            self._poll_in(side, READABLE, abi.POLLIN)
        elif peer is None or side.ended or peer.held is not None:
            if side.armed:
                self._end_receive(side)
            elif not (side.ended and side.finished):  # both ends closed in good order look like a reset to a poll
                self._poll_in(side, WATCH, 0)
        elif side.bulk or self.careful:
            side.bulk = True
            if side.armed:
                self._end_receive(side)
            else:
                self._poll_in(side, READABLE, abi.POLLIN)
        else:
            if side.poll_in:
                self._poll_in(side, 0, 0)
            if not side.armed:
                side.armed = ARMED
                side.busy += 1
                self._push(self._receive | side.fd << abi.FD, 0, 0, 0, side.slot)

    def watch_out(self, side: Side) -> None:
        """Wait until `side` takes bytes again."""
        if not side.poll_out:
            side.poll_out = True
            side.busy += 1
            self._push(_POLL | side.fd << abi.FD, 0, 0, abi.POLLOUT << abi.OP_FLAGS, side.slot | POLL_OUT_TAG)

    def _end_receive(self, side: Side) -> None:
        if side.armed == ARMED:
            side.armed = CANCELLING
            self._cancel(side.slot)

    def _poll_in(self, side: Side, wanted: int, mask: int) -> None:
        """Have that poll, in place of another that is under way."""
        if side.poll_in == wanted:
            return
        if side.poll_in == 0:
            side.poll_in = wanted
            side.busy += 1
            self._push(_POLL | side.fd << abi.FD, 0, 0, mask << abi.OP_FLAGS, side.slot | POLL_IN_TAG)
        elif side.poll_in != ENDING:
            side.poll_in = ENDING
            self._cancel(side.slot | POLL_IN_TAG)
