"""Bulk: a direction that brings much at once is read by hand, in large pieces, whenever a poll says there is something.

Two copies of a large piece cost less than many small buffers, each with a completion. And it is the way of every side
while all connections together hold too much: nothing more is then taken from a socket than its peer has taken.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

from relay.engines.ring import abi, sockets
from relay.engines.ring.interest import Interest
from relay.engines.ring.records import Side

READ = 65536  # bytes of one read
ROUNDS = 16  # reads of one side before the others get their turn
SMALL = 8192  # bytes; a turn that brings less was the last


class Keeper(Protocol):
    """What becomes of that which does not go through, and of a side that ends."""

    def hold(self, side: Side, data: bytes, *, stuck: bool = False) -> None:
        """Keep what came from `side` until its peer takes it; `stuck`: the peer is known to take nothing now."""

    def ended(self, side: Side) -> None:
        """`side` has sent FIN."""

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno."""


class Bulk:
    """Reads sides by hand."""

    def __init__(self, interest: Interest, keeper: Keeper) -> None:
        self._interest = interest
        self._keeper = keeper
        self._memory = bytearray(READ)
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))

    def read(self, side: Side, peer: Side) -> bool:
        """Pass on what there is, then wait for more; False if the side has ended or the connection is over."""
        total = 0
        for _ in range(ROUNDS):
            try:
                # In a tight place the bytes stay in the kernel until the peer has taken them.
                size = sockets.receive(
                    side.fd, self._address, READ, abi.MSG_PEEK if self._interest.under_pressure else 0
                )
                if size is None:
                    break
                if not size:
                    self._keeper.ended(side)
                    return False
            except OSError as error:
                self._keeper.broken(side, error.errno)
                return False
            if not self._pass_on(side, peer, size):
                return False
            total += size
            if size < READ or peer.held is not None:
                break
        if total < SMALL and peer.held is None:
            side.bulk = False
        self._interest.watch(side)
        return True

    def drop(self, side: Side) -> None:
        """Take what still comes from a side that was cut, then wait for more.

        Not read, it would have the kernel close the socket with a reset; and an upstream that cannot get rid of what it
        sends might not read either.
        """
        for _ in range(ROUNDS):
            try:
                size = sockets.receive(side.fd, self._address, READ, abi.MSG_TRUNC)
            except OSError as error:
                self._keeper.broken(side, error.errno)
                return
            if size is None:
                break
            if not size:
                self._keeper.ended(side)
                return
        self._interest.watch(side)

    def _pass_on(self, side: Side, peer: Side, size: int) -> bool:
        """Send what was read; False if the connection is over."""
        try:
            sent = sockets.send_from(peer.fd, self._address, size)
        except OSError as error:
            side.received += 0 if self._interest.under_pressure else size
            self._keeper.broken(peer, error.errno)
            return False
        if self._interest.under_pressure:
            side.received += sent
            if sent:
                try:
                    sockets.receive(side.fd, self._address, sent, abi.MSG_TRUNC)
                except OSError as error:
                    self._keeper.broken(side, error.errno)
                    return False
            if sent < size:
                self._keeper.hold(side, b"", stuck=not sent)
        else:
            side.received += size
            if sent < size:
                self._keeper.hold(side, bytes(self._memory[sent:size]))
        return True
