"""How the ring engine closes a socket: in the ring, after what was prepared before, and without waiting for it.

With FIN, or with RST: connect(2) to AF_UNSPEC dissolves a TCP connection and sends one (tcp_disconnect).
"""

from __future__ import annotations

from relay.engines.ring import abi
from relay.engines.ring.interest import RESET, Interest
from relay.engines.ring.pump import Pump
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.records import NO_SUBMISSION, Side
from relay.engines.ring.slots import CONNECT_TAG, POLL_IN_TAG, POLL_OUT_TAG, QUIETLY, Slots, silent
from relay.engines.ring.sockets import NOWHERE

_CLOSE_WORD = abi.IORING_OP_CLOSE | QUIETLY
# A hard link to the close that follows it: if the kernel puts the one off, it does the other as well.
_RESET_WORD = abi.IORING_OP_CONNECT | QUIETLY | abi.IOSQE_IO_HARDLINK
_CLOSE_TAG, _RESET_TAG = silent(abi.IORING_OP_CLOSE), silent(abi.IORING_OP_CONNECT)


class Closer:
    """Closes sides and descriptors."""

    def __init__(self, reactor: Reactor, slots: Slots, interest: Interest, pump: Pump) -> None:
        self._push, self._push_pair = reactor.push, reactor.push_pair
        self._slots = slots
        self._interest = interest
        self._pump = pump

    def close(self, side: Side, reset: bool) -> None:
        """Close a side with RST, or with FIN (the kernel sends RST if something was not read)."""
        fd = side.fd
        # What cannot be delivered any more must not look as if nothing were missing.
        if not reset and not side.broken and not self._pump.last(side):
            reset = True
        if side.held is not None:
            self._pump.forget(side)
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
        """Close it with RST. Whatever waits for the socket ends with that."""
        self._push_pair(
            _RESET_WORD | fd << 32, NOWHERE.size, NOWHERE.address, _RESET_TAG, _CLOSE_WORD | fd << 32, _CLOSE_TAG
        )

    def _cancel_all(self, side: Side) -> None:
        """End what is under way on a side: it would keep the socket open behind the closed descriptor."""
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
