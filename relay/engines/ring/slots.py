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
from relay.engines.ring.link import Side
from relay.engines.ring.reactor import CONNECT, NEVER, POLL_IN, POLL_OUT, SILENT, SLOT_BITS, SLOTS, VALUE, Reactor
from relay.engines.ring.sockets import NOWHERE

logger = logging.getLogger("relay.engine")

QUIETLY = abi.IOSQE_CQE_SKIP_SUCCESS
CONNECT_TAG, POLL_IN_TAG, POLL_OUT_TAG = CONNECT << SLOT_BITS, POLL_IN << SLOT_BITS, POLL_OUT << SLOT_BITS
_SILENT_TAG = SILENT << SLOT_BITS
CLOSE_WORD = abi.IORING_OP_CLOSE | QUIETLY
RESET_WORD = abi.IORING_OP_CONNECT | QUIETLY | abi.IOSQE_IO_HARDLINK  # of NOWHERE: sends RST
# What silent operations may answer where all is well: what was to be cancelled is over or about to be, the connection
# that was to be shut down or reset is gone.
HARMLESS = frozenset({errno.ENOENT, errno.EALREADY, errno.ENOTCONN, errno.ECANCELED, errno.ECONNRESET, errno.EPIPE})


class Slots:
    """The sides of one engine, by slot."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._push, self._push_pair = reactor.push, reactor.push_pair
        self._sides = reactor.sides
        self._free: list[int] = []
        self._resting: list[int] = []  # released in this turn
        self._rested: list[int] = []  # released in the turn before
        reactor.handlers[SILENT] = _failed
        reactor.after_turn = self._turn_over

    def add(self, side: Side) -> None:
        """Give a side its slot. Raises OSError if there is none left."""
        if self._free:
            side.slot = slot = self._free.pop()
            self._sides[slot] = side
        elif len(self._sides) < SLOTS:
            side.slot = len(self._sides)
            self._sides.append(side)
        else:
            raise OSError(errno.ENFILE, f"more than {SLOTS} sockets")

    def close(self, side: Side, *, reset: bool) -> None:
        """Close the side's descriptor: with RST, or with FIN (the kernel sends RST if something was not read)."""
        fd = side.fd
        if reset:
            self.reset_descriptor(fd)  # whatever waits for the socket ends with that
        else:
            if side.busy:
                self._cancel_all(side)
            self._push(CLOSE_WORD | fd << 32, 0, 0, 0, _CLOSE_TAG)
        side.fd = -1
        side.sent = NEVER
        side.link = side.peer = side.held = None
        if not side.busy:
            self.release(side)

    def _cancel_all(self, side: Side) -> None:
        """An operation under way would keep the socket open behind the closed descriptor."""
        left = side.busy
        if side.armed:
            left -= 1
            self.cancel(side.slot)
        if side.poll_in:
            left -= 1
            self.cancel(side.slot | POLL_IN_TAG)
        if side.poll_out:
            left -= 1
            self.cancel(side.slot | POLL_OUT_TAG)
        if left:
            self.cancel(side.slot | CONNECT_TAG)

    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor with FIN."""
        self._push(CLOSE_WORD | fd << 32, 0, 0, 0, _CLOSE_TAG)

    def reset_descriptor(self, fd: int) -> None:
        """Close it with RST."""
        # A hard link: if the kernel puts the one off, it does the other as well.
        self._push_pair(
            RESET_WORD | fd << 32, NOWHERE.size, NOWHERE.address, _RESET_TAG, CLOSE_WORD | fd << 32, _CLOSE_TAG
        )

    def cancel(self, user_data: int) -> None:
        """End an operation; it reports once more. By user_data, which the kernel finds at once: a look for all of a
        descriptor's operations goes through those of every connection."""
        self._push(abi.IORING_OP_ASYNC_CANCEL | QUIETLY, 0, user_data, 0, silent(abi.IORING_OP_ASYNC_CANCEL))

    def release(self, side: Side) -> None:
        """A closed side has nothing under way any more: its slot may rest, and then be used again."""
        self._resting.append(side.slot)
        self._reactor.tidy = True

    @property
    def open(self) -> int:
        """Slots that are in use, those of closed sides that are not free yet included."""
        return len(self._sides) - len(self._free)

    def _turn_over(self) -> bool:
        """The end of a turn; whether the next one's is to be told as well."""
        for slot in self._rested:
            self._sides[slot] = Side.NOBODY
        self._free += self._rested
        self._rested, self._resting = self._resting, []
        return bool(self._rested)


def silent(opcode: int) -> int:
    """user_data of an operation that reports failures only."""
    return _SILENT_TAG | opcode << VALUE


_CLOSE_TAG, _RESET_TAG = silent(abi.IORING_OP_CLOSE), silent(abi.IORING_OP_CONNECT)


def _failed(user_data: int, result: int, _flags: int) -> None:
    if -result not in HARMLESS:
        logger.error("ring operation %d failed: %s", user_data >> VALUE, os.strerror(-result))
