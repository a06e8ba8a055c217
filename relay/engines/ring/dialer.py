"""Dials upstreams for the ring engine: opens and binds a socket and submits its connect, whose completion follows."""

from __future__ import annotations

from collections.abc import Sequence

from relay.address import Address
from relay.engines.contract import Dial
from relay.engines.options import Option
from relay.engines.ring import sockets
from relay.engines.ring.abi import IORING_OP_CONNECT
from relay.engines.ring.closer import Closer
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.records import Link
from relay.engines.ring.slots import CONNECT_TAG, Slots

MAX_TARGETS = 1024  # upstream addresses whose struct sockaddr is kept


class Dialer:
    """Starts connects. `options` are set on every socket beforehand."""

    def __init__(self, reactor: Reactor, slots: Slots, closer: Closer) -> None:
        self.options: Sequence[Option] = ()
        self._reactor = reactor
        self._slots = slots
        self._closer = closer
        self._targets: dict[Address, sockets.Sockaddr] = {}

    def dial(self, link: Link, action: Dial) -> None:
        """Give the link an upstream side that is connecting. Raises OSError if the connect cannot be started."""
        target = self._targets.get(action.address) or self._target(action.address)
        fd = sockets.open_stream(target, action.source, self.options)
        try:
            side = link.upstream = self._slots.take(link, fd)
        except OSError:
            self._closer.close_descriptor(fd)
            raise
        side.busy = 1
        self._reactor.push(IORING_OP_CONNECT | fd << 32, target.size, target.address, 0, side.slot | CONNECT_TAG)

    def _target(self, address: Address) -> sockets.Sockaddr:
        """The address in memory, from which the kernel reads it when the connect is submitted. Raises OSError."""
        if len(self._targets) >= MAX_TARGETS:
            self._reactor.flush()
            self._targets.clear()
        target = self._targets[address] = sockets.sockaddr(address)
        return target
