"""Closes the ring engine's sockets by ring operations, in order behind those prepared before, without waiting.

A socket is closed with FIN, or with RST: connect(2) to AF_UNSPEC dissolves a TCP connection and sends RST
(tcp_disconnect).
"""

from __future__ import annotations

from relay.engines.ring import abi
from relay.engines.ring.interest import RESET, Interest
from relay.engines.ring.pump import Pump
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.records import NO_SUBMISSION, Side
from relay.engines.ring.slots import CONNECT_TAG, POLL_IN_TAG, POLL_OUT_TAG, SILENTLY, Slots, silent_tag
from relay.engines.ring.sockets import NOWHERE

_CLOSE_WORD = abi.IORING_OP_CLOSE | SILENTLY
# Hard-linked to the close that follows it: if the kernel defers the one, it defers the other as well.
_RESET_WORD = abi.IORING_OP_CONNECT | SILENTLY | abi.IOSQE_IO_HARDLINK
_CLOSE_TAG, _RESET_TAG = silent_tag(abi.IORING_OP_CLOSE), silent_tag(abi.IORING_OP_CONNECT)


class Closer:
    """Closes sides and descriptors."""

    def __init__(self, reactor: Reactor, slots: Slots, interest: Interest, pump: Pump) -> None:
        self._push, self._push_pair = reactor.push, reactor.push_pair
        self._slots = slots
        self._interest = interest
        self._pump = pump

    def close(self, side: Side, reset: bool) -> None:
        """Close a side with RST or with FIN (instead of which the kernel sends RST if bytes were not read)."""
        fd = side.fd
        # A stream whose last bytes cannot be delivered must not look complete.
        if not reset and not side.broken and not self._pump.flush_held(side):
            reset = True
        if side.held is not None:
            self._pump.drop_held(side)
        if side.poll_in == RESET or side.poll_out:
            self._interest.unregister(side)
        if reset:
            self.reset_descriptor(fd)
        else:
            if side.busy:
                self._cancel_all(side)
            self._push(_CLOSE_WORD | fd << 32, 0, 0, 0, _CLOSE_TAG)  # FD
        side.fd = -1
        side.sent = NO_SUBMISSION
        side.link = side.peer = side.held = None
        if not side.busy:
            self._slots.release(side)

    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor with FIN."""
        self._push(_CLOSE_WORD | fd << abi.FD, 0, 0, 0, _CLOSE_TAG)

    def reset_descriptor(self, fd: int) -> None:
        """Close a descriptor with RST. Operations that wait for the socket complete with that."""
        self._push_pair(
            _RESET_WORD | fd << 32, NOWHERE.size, NOWHERE.address, _RESET_TAG, _CLOSE_WORD | fd << 32, _CLOSE_TAG
        )

    def _cancel_all(self, side: Side) -> None:
        """Cancel the operations under way on a side: they would keep the socket open behind the closed descriptor."""
        cancel, left = self._slots.cancel, side.busy
        if side.armed:
            left -= 1
            cancel(side.slot)
        if side.poll_in:
            left -= 1
            cancel(side.slot | POLL_IN_TAG)
        if side.poll_out:
            left -= 1
            cancel(side.slot | POLL_OUT_TAG)
        if left:
            cancel(side.slot | CONNECT_TAG)
