"""Which side has which slot, and when a slot may be used again; how a side's descriptor is closed.

A completion names a slot, and may come after its side was closed. So a side keeps its slot until all of its operations
have reported, and for a whole turn more: the failure of a send, which is not counted since its success is silent, comes
with the entry that submits it.
"""

from __future__ import annotations

import errno
import logging
import os

from relay.engines.ring import abi
from relay.engines.ring.link import Link, Side
from relay.engines.ring.reactor import CONNECT, POLL_IN, POLL_OUT, SILENT, SLOT_BITS, SLOTS, VALUE, Reactor
from relay.engines.ring.sockets import NOWHERE

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
        self._free: list[int] = []
        self._resting: list[int] = []  # released in this turn
        self._rested: list[int] = []  # released in the turn before
        self.open = 0  # slots in use, those of closed sides that have operations under way included
        reactor.handlers[SILENT] = _failed
        reactor.after_turn = self._turn_over

    def client(self, link: Link) -> None:
        """Give the client's side its slot. Raises OSError if there is none left."""
        self._add(link.client)

    def upstream(self, link: Link, fd: int) -> Side:
        """The upstream side for a descriptor. Raises OSError if there is no slot left."""
        side = Side(link, fd)
        self._add(side)
        return side

    def _add(self, side: Side) -> None:
        if self._free:
            side.slot = self._free.pop()
            self._sides[side.slot] = side
        elif len(self._sides) < SLOTS:
            side.slot = len(self._sides)
            self._sides.append(side)
        else:
            raise OSError(errno.ENFILE, f"more than {SLOTS} sockets")
        self.open += 1

    def close(self, side: Side, *, reset: bool) -> None:
        """Close the side's descriptor: with RST, or with FIN (the kernel sends RST if something was not read)."""
        push, fd, slot = self._push, side.fd, side.slot
        if reset:
            # Whatever waits for the socket ends with that. The link: if the kernel puts the one off, it does the other.
            push(abi.IORING_OP_CONNECT | QUIETLY | abi.IOSQE_IO_HARDLINK | fd << abi.FD, NOWHERE.size, NOWHERE.address,
                 0, silent(abi.IORING_OP_CONNECT))  # fmt: skip
        elif side.busy:
            # An operation under way would keep the socket open behind the closed descriptor.
            if side.armed:
                self.cancel(slot)
            if side.connecting:
                self.cancel(slot | CONNECT_TAG)
            if side.poll_in:
                self.cancel(slot | POLL_IN_TAG)
            if side.poll_out:
                self.cancel(slot | POLL_OUT_TAG)
        self.close_descriptor(fd)
        side.close()
        if not side.busy:
            self.release(side)

    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor that has no side."""
        self._push(abi.IORING_OP_CLOSE | QUIETLY | fd << abi.FD, 0, 0, 0, silent(abi.IORING_OP_CLOSE))

    def reset_descriptor(self, fd: int) -> None:
        """Close it with RST."""
        self._push(abi.IORING_OP_CONNECT | QUIETLY | abi.IOSQE_IO_HARDLINK | fd << abi.FD, NOWHERE.size,
                   NOWHERE.address, 0, silent(abi.IORING_OP_CONNECT))  # fmt: skip
        self.close_descriptor(fd)

    def cancel(self, user_data: int) -> None:
        """End an operation; it reports once more. By user_data, which the kernel finds at once: a look for all of a
        descriptor's operations goes through those of every connection."""
        self._push(abi.IORING_OP_ASYNC_CANCEL | QUIETLY, 0, user_data, 0, silent(abi.IORING_OP_ASYNC_CANCEL))

    def release(self, side: Side) -> None:
        """A closed side has nothing under way any more: its slot may rest, and then be used again."""
        self._resting.append(side.slot)

    def _turn_over(self) -> None:
        if self._resting or self._rested:
            self.open -= len(self._rested)
            for slot in self._rested:
                self._sides[slot] = Side.NOBODY
            self._free += self._rested
            self._rested, self._resting = self._resting, []


def silent(opcode: int) -> int:
    """user_data of an operation that reports failures only."""
    return _SILENT_TAG | opcode << VALUE


def _failed(user_data: int, result: int, _flags: int) -> None:
    if -result not in HARMLESS:
        logger.error("ring operation %d failed: %s", user_data >> VALUE, os.strerror(-result))
