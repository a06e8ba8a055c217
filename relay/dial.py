"""Which address to dial next, and what a failed attempt means. Decides; touches no socket."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from relay.engines.contract import Address
from relay.outcome import Outcome

# Errors of socket(2) and connect(2) by what they mean for the connection; all others are Outcome.DIAL_FAILED.
DIAL_OUTCOMES: dict[int, Outcome] = {
    errno.ECONNREFUSED: Outcome.DIAL_REFUSED,
    errno.ECONNRESET: Outcome.DIAL_REFUSED,
    errno.ETIMEDOUT: Outcome.DIAL_TIMEOUT,
    # The relay's own machine has run out of something.
    errno.EMFILE: Outcome.NO_RESOURCES,
    errno.ENFILE: Outcome.NO_RESOURCES,
    errno.ENOBUFS: Outcome.NO_RESOURCES,
    errno.ENOMEM: Outcome.NO_RESOURCES,
    # connect(2): "all port numbers in the ephemeral port range are currently in use".
    errno.EADDRNOTAVAIL: Outcome.NO_RESOURCES,
    errno.EAGAIN: Outcome.NO_RESOURCES,
}


class Target(NamedTuple):
    """Something to dial: a literal address, or a name whose addresses are not known yet (`address` None)."""

    upstream: int  # number of the upstream, for the counters
    host: str
    port: int
    address: Address | None


class Route:
    """The upstreams of one listener, tried in turn; each connection starts with the next one."""

    def __init__(self, upstreams: Sequence[tuple[int, str, int]]) -> None:
        """`upstreams` are (number, host, port); at least one."""
        if not upstreams:
            raise ValueError("a route needs an upstream")
        self._targets = [Target(n, host, port, literal(host, port)) for n, host, port in upstreams]
        self._turn = 0

    def targets(self) -> list[Target]:
        """What a new connection tries, the first one last in the list (to be popped)."""
        self._turn = turn = (self._turn + 1) % len(self._targets)
        ordered = self._targets[turn:] + self._targets[:turn]
        ordered.reverse()
        return ordered

    def expand(self, target: Target, addresses: Sequence[str]) -> list[Target]:
        """The addresses of a name as targets, in the order given but beginning with another one each time."""
        turn = self._turn % len(addresses)
        ordered = [*addresses[turn:], *addresses[:turn]]
        return [target._replace(address=literal(address, target.port)) for address in reversed(ordered)]


def literal(host: str, port: int) -> Address | None:
    """The socket address of a literal IPv4 or IPv6 address; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (host, port) if address.version == 4 else (host, port, 0, 0)
