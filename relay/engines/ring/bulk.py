"""Bulk transfer: a direction that brings much at once is polled, and read in large pieces with recv(2).

Two copies of a large piece cost less than many small buffers, each with a completion. Under memory pressure, while all
connections together hold too much, every side is read this way: no more is then taken from a socket than its peer has
taken (MSG_PEEK first).
"""

from __future__ import annotations

import ctypes
from typing import Protocol

from relay.engines.ring import abi, sockets
from relay.engines.ring.interest import Interest
from relay.engines.ring.records import Side

READ_SIZE = 65536  # bytes of one read
ROUNDS = 16  # reads of one side before other sides are served
SMALL = 8192  # bytes; a direction that brings less in a turn is no longer bulk


class Pump(Protocol):
    """What bulk transfer needs of the pump."""

    def hold(self, side: Side, data: bytes, *, stuck: bool = False) -> None:
        """Hold bytes from `side` until its peer takes them; `stuck`: the peer is known to take nothing now."""

    def ended(self, side: Side) -> None:
        """`side` has sent FIN."""

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno."""


class Bulk:
    """Reads sides with recv(2) and sends with send(2)."""

    def __init__(self, interest: Interest, pump: Pump) -> None:
        self._interest = interest
        self._pump = pump
        self._memory = bytearray(READ_SIZE)
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))

    def read(self, side: Side, peer: Side) -> bool:
        """Relay the bytes that are there, then wait for more; False if the side has ended or the connection is over."""
        total = 0
        for _ in range(ROUNDS):
            try:
                # Under memory pressure the bytes stay in the kernel until the peer has taken them.
                size = sockets.receive(
                    side.fd, self._address, READ_SIZE, abi.MSG_PEEK if self._interest.under_pressure else 0
                )
                if size is None:
                    break
                if not size:
                    self._pump.ended(side)
                    return False
            except OSError as error:
                self._pump.broken(side, error.errno)
                return False
            if not self._pass_on(side, peer, size):
                return False
            total += size
            if size < READ_SIZE or peer.held is not None:
                break
        if total < SMALL and peer.held is None:
            side.bulk = False
        self._interest.watch(side)
        return True

    def drop(self, side: Side) -> None:
        """Discard the bytes that a side still sends after it was cut, then wait for more.

        With unread bytes the kernel would close the socket with RST; and an upstream that is blocked in sending might
        not read either.
        """
        for _ in range(ROUNDS):
            try:
                size = sockets.receive(side.fd, self._address, READ_SIZE, abi.MSG_TRUNC)
            except OSError as error:
                self._pump.broken(side, error.errno)
                return
            if size is None:
                break
            if not size:
                self._pump.ended(side)
                return
        self._interest.watch(side)

    def _pass_on(self, side: Side, peer: Side, size: int) -> bool:
        """Send the bytes that were read to the peer; False if the connection is over."""
        try:
            sent = sockets.send_from(peer.fd, self._address, size)
        except OSError as error:
            side.received += 0 if self._interest.under_pressure else size
            self._pump.broken(peer, error.errno)
            return False
        if self._interest.under_pressure:
            side.received += sent
            if sent:
                try:
                    sockets.receive(side.fd, self._address, sent, abi.MSG_TRUNC)
                except OSError as error:
                    self._pump.broken(side, error.errno)
                    return False
            if sent < size:
                self._pump.hold(side, b"", stuck=not sent)
        else:
            side.received += size
            if sent < size:
                self._pump.hold(side, bytes(self._memory[sent:size]))
        return True
