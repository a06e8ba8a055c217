"""Traffic for a ring: completions without end."""

from __future__ import annotations

import socket
from collections.abc import Callable

from relay.engines.ring import abi
from relay.engines.ring.reactor import POLL_IN, SLOT_BITS, Reactor

Pair = tuple[socket.socket, socket.socket]
TRAFFIC = 50  # completions before something is done


class Traffic:
    """Completions in every turn, without end: a poll of what is readable, submitted again as soon as it completes."""

    def __init__(self, reactor: Reactor, descriptor: int, during: Callable[[], object]) -> None:
        self.completions = 0
        self._reactor, self._descriptor, self._during = reactor, descriptor, during
        reactor.handlers[POLL_IN] = self._fired
        self._poll()

    def _poll(self) -> None:
        word = abi.IORING_OP_POLL_ADD | self._descriptor << abi.FD
        self._reactor.push(word, 0, 0, abi.POLLIN << abi.OP_FLAGS, POLL_IN << SLOT_BITS)

    def _fired(self, _user_data: int, result: int, _flags: int) -> None:
        assert result == abi.POLLIN
        self.completions += 1
        if self.completions == TRAFFIC:
            self._during()
        self._poll()
