"""Waits for the ring engine's listeners: one poll each, submitted again each time the accept queue was emptied."""

from __future__ import annotations

from collections.abc import Callable

from relay.engines.acceptor import Acceptor, Begin
from relay.engines.ring import abi
from relay.engines.ring.reactor import ACCEPT, SLOT_BITS, SLOT_MASK, Reactor
from relay.engines.ring.slots import Slots

CANCEL_TURNS = 100  # turns for a cancelled poll to complete: one, or more if the kernel has no memory for the cancel

_POLL = abi.IORING_OP_POLL_ADD
_TAG = ACCEPT << SLOT_BITS


class Listening:
    """Polls the acceptor's listeners."""

    def __init__(self, reactor: Reactor, slots: Slots, begin: Begin, refuse: Callable[[int], None]) -> None:
        self.acceptor = Acceptor(self._poll, self._cancel_poll, begin, refuse)
        self._reactor = reactor
        self._slots = slots
        self._polled: set[int] = set()  # listeners with a poll under way
        reactor.handlers[ACCEPT] = self._on_accept

    def _on_accept(self, user_data: int, _result: int, _flags: int) -> None:
        """The poll of a listener has completed: its accept queue has a connection, or the poll was cancelled."""
        fd, acceptor = user_data & SLOT_MASK, self.acceptor
        self._polled.discard(fd)
        if acceptor.waits(fd):
            acceptor.accept(fd)
            if acceptor.waits(fd):
                self._poll(fd)

    def _poll(self, fd: int) -> None:
        self._polled.add(fd)
        self._reactor.push(_POLL | fd << abi.FD, 0, 0, abi.POLLIN << abi.OP_FLAGS, fd | _TAG)

    def _cancel_poll(self, fd: int) -> None:
        """Cancel the poll of a listener and wait for that. To be called between turns, or after the poll's completion.

        The poll is a reference to the listening socket: until it has completed, a closed listener would go on accepting
        clients, only to reset them afterwards.
        """
        if fd in self._polled:
            self._slots.cancel(fd | _TAG)
        for _ in range(CANCEL_TURNS):
            if fd not in self._polled:
                return
            self._reactor.turn()
