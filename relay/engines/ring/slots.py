"""Allocates slots, the numbers by which completions name a side, and decides when one may be used again.

A completion may come after its side was closed. So a closed side is quarantined until all of its operations have
completed, and for one whole turn more: the failure of a send, which `Side.busy` does not count since a success posts no
completion, comes with the entry that submits it. Then the side is used for another socket: making a new record costs as
much as everything else that is done with it on a short connection.
"""

from __future__ import annotations

import errno
import logging
import os

from relay.engines.ring import abi
from relay.engines.ring.reactor import CONNECT, POLL_IN, POLL_OUT, SILENT, SLOT_BITS, SLOTS, VALUE_SHIFT, Reactor
from relay.engines.ring.records import Link, Side

logger = logging.getLogger("relay.engine")

SILENTLY = abi.IOSQE_CQE_SKIP_SUCCESS
CONNECT_TAG, POLL_IN_TAG, POLL_OUT_TAG = CONNECT << SLOT_BITS, POLL_IN << SLOT_BITS, POLL_OUT << SLOT_BITS
_SILENT_TAG = SILENT << SLOT_BITS
# Failures that are no fault: the operation to cancel has completed or is about to, the connection to reset is gone.
HARMLESS = frozenset({errno.ENOENT, errno.EALREADY, errno.ENOTCONN, errno.ECANCELED, errno.ECONNRESET, errno.EPIPE})


class Slots:
    """The slots of one engine, each with its side."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._push = reactor.push
        self._sides = reactor.sides
        self.free: list[Side] = []
        self.released: list[Side] = []  # released in this turn
        self._quarantined: list[Side] = []  # released in the turn before
        reactor.handlers[SILENT] = _failed
        reactor.after_turn = self._recycle

    def take(self, link: Link, fd: int) -> Side:
        """Allocate a side to a socket. Raises OSError if every slot is in use."""
        if self.free:
            side = self.free.pop()
        elif len(self._sides) < SLOTS:
            side = Side(len(self._sides))
            self._sides.append(side)
        else:
            raise OSError(errno.ENFILE, f"more than {SLOTS} sockets")
        side.link = link
        side.fd = fd
        return side

    def cancel(self, user_data: int) -> None:
        """Cancel an operation, which completes all the same. The kernel finds it by user_data at once; a cancel of
        all operations of a descriptor would search those of every connection."""
        self._push(abi.IORING_OP_ASYNC_CANCEL | SILENTLY, 0, user_data, 0, silent_tag(abi.IORING_OP_ASYNC_CANCEL))

    def release(self, side: Side) -> None:
        """Begin the quarantine of a closed side, unless an operation of it is still under way."""
        if not side.busy:
            self.released.append(side)
            self._reactor.cleanup_due = True

    @property
    def open(self) -> int:
        """Slots in use, including those of closed sides that are not free yet."""
        return len(self._sides) - len(self.free)

    def _recycle(self) -> bool:
        """End of a turn: free the sides whose quarantine is over; True if the end of the next turn matters too."""
        for side in self._quarantined:
            side.received = side.armed = 0  # the polls' completions have cleared their own fields
            side.short = side.bulk = side.ended = side.dropping = side.finished = side.broken = False
        self.free += self._quarantined
        self._quarantined, self.released = self.released, []
        return bool(self._quarantined)


def silent_tag(opcode: int) -> int:
    """user_data of an operation that posts a completion only if it fails."""
    return _SILENT_TAG | opcode << VALUE_SHIFT


def _failed(user_data: int, result: int, _flags: int) -> None:
    if -result not in HARMLESS:
        logger.error("ring operation %d failed: %s", user_data >> VALUE_SHIFT, os.strerror(-result))
