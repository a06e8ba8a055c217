"""How the ring engine waits for its listeners: by a poll for each, armed again after every look into the queue."""

from __future__ import annotations

from collections.abc import Callable

from relay.engines.acceptor import Acceptor, Begin
from relay.engines.ring import abi
from relay.engines.ring.reactor import ACCEPT, SLOT_BITS, SLOT_MASK, Reactor
from relay.engines.ring.slots import Slots

END_TURNS = 100  # in which a poll that was taken back has ended: one, and more if the kernel has no memory for it

_POLL = abi.IORING_OP_POLL_ADD
_TAG = ACCEPT << SLOT_BITS


class Listening:
    """Polls the acceptor's listeners."""

    def __init__(self, reactor: Reactor, slots: Slots, begin: Begin, refuse: Callable[[int], None]) -> None:
        self.acceptor = Acceptor(self._watch, self._unwatch, begin, refuse)
        self._reactor = reactor
        self._slots = slots
        self._polled: set[int] = set()  # those that a poll is under way for
        reactor.handlers[ACCEPT] = self._on_accept

    def _on_accept(self, user_data: int, _result: int, _flags: int) -> None:
        """A listener has something in its queue, or is not waited for any more."""
        fd, acceptor = user_data & SLOT_MASK, self.acceptor
        self._polled.discard(fd)
        if acceptor.waits(fd):
            acceptor.accept(fd)
            if acceptor.waits(fd):
                self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._polled.add(fd)
        self._reactor.push(_POLL | fd << abi.FD, 0, 0, abi.POLLIN << abi.OP_FLAGS, fd | _TAG)

    def _unwatch(self, fd: int) -> None:
        """To be called between turns, or where the poll has just ended.

        The poll is a reference to the listener: until it is taken back, one that is closed would let clients in, and
        reset them then.
        """
        if fd in self._polled:
            self._slots.cancel(fd | _TAG)
        for _ in range(END_TURNS):
            if fd not in self._polled:
                return
            self._reactor.turn()
