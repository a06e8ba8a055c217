"""Which side has which slot, and when a slot may be used again.

A completion names a slot, and may come after its side was closed. So a side rests until all of its operations have
reported, and for a whole turn more: the failure of a send, which is not counted since its success is silent, comes with
the entry that submits it. Then another socket gets it: records are made once and used again, as the slots are, since
making one costs as much as all else that is done with it on a short connection.
"""

from __future__ import annotations

import errno
import logging
import os

from relay.engines.ring import abi
from relay.engines.ring.reactor import CONNECT, POLL_IN, POLL_OUT, SILENT, SLOT_BITS, SLOTS, VALUE, Reactor
from relay.engines.ring.records import Link, Side

logger = logging.getLogger("relay.engine")

QUIETLY = abi.IOSQE_CQE_SKIP_SUCCESS
CONNECT_TAG, POLL_IN_TAG, POLL_OUT_TAG = CONNECT << SLOT_BITS, POLL_IN << SLOT_BITS, POLL_OUT << SLOT_BITS
_SILENT_TAG = SILENT << SLOT_BITS
# What silent operations may answer where all is well: what was to be cancelled is over or about to be, the connection
# that was to be shut down or reset is gone.
HARMLESS = frozenset({errno.ENOENT, errno.EALREADY, errno.ENOTCONN, errno.ECANCELED, errno.ECONNRESET, errno.EPIPE})


class Slots:
    """The sides of one engine, by slot."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._push = reactor.push
        self._sides = reactor.sides
        self.free: list[Side] = []
        self.resting: list[Side] = []  # released in this turn
        self._rested: list[Side] = []  # released in the turn before
        reactor.handlers[SILENT] = _failed
        reactor.after_turn = self._turn_over

    def take(self, link: Link, fd: int) -> Side:
        """A side for a socket. Raises OSError if there is none left."""
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
        """End an operation; it reports once more. By user_data, which the kernel finds at once: a look for all of a
        descriptor's operations goes through those of every connection."""
        self._push(abi.IORING_OP_ASYNC_CANCEL | QUIETLY, 0, user_data, 0, silent(abi.IORING_OP_ASYNC_CANCEL))

    def release(self, side: Side) -> None:
        """A side that was closed: once nothing is under way any more, it may rest, and then be used again."""
        if not side.busy:
            self.resting.append(side)
            self._reactor.tidy = True

    @property
    def open(self) -> int:
        """Slots that are in use, those of closed sides that are not free yet included."""
        return len(self._sides) - len(self.free)

    def _turn_over(self) -> bool:
        """The end of a turn; whether the next one's is to be told as well."""
        for side in self._rested:
            side.received = side.armed = 0  # the polls have reported, and said so
            side.short = side.bulk = side.ended = side.dropping = side.finished = side.broken = False
        self.free += self._rested
        self._rested, self.resting = self.resting, []
        return bool(self._rested)


def silent(opcode: int) -> int:
    """user_data of an operation that reports failures only."""
    return _SILENT_TAG | opcode << VALUE


def _failed(user_data: int, result: int, _flags: int) -> None:
    if -result not in HARMLESS:
        logger.error("ring operation %d failed: %s", user_data >> VALUE, os.strerror(-result))
