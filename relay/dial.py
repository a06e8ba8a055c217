"""Which address to dial next, and what a failed attempt means. Decides; touches no socket."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from relay.engines.contract import Address, Dial
from relay.outcome import Outcome

T = TypeVar("T")

EXPANDED = 64  # answers of the resolver whose targets are kept

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
    """Something to dial: a literal address, or a name whose addresses are not known yet (`address` and `dial` None)."""

    upstream: int  # number of the upstream, for the counters
    host: str
    port: int
    address: Address | None
    dial: Dial | None = None  # the action for `address`, made once for all connections


class Route:
    """The upstreams of one listener, tried in turn; each connection starts with the next one."""

    def __init__(self, upstreams: Sequence[tuple[int, str, int]], timeout: float) -> None:
        """`upstreams` are (number, host, port), at least one; `timeout` are the seconds that each address has."""
        if not upstreams:
            raise ValueError("a route needs an upstream")
        self._timeout = timeout
        self._targets = [self._target(n, host, port, literal(host, port)) for n, host, port in upstreams]
        self._turn = -1  # of the connection that began last; counts on for ever
        self._expanded: dict[tuple[int, tuple[str, ...]], tuple[list[Target], list[Target]]] = {}

    def targets(self) -> list[Target]:
        """What a new connection tries, the first one last in the list (to be popped)."""
        self._turn += 1
        if len(self._targets) == 1:
            return self._targets.copy()
        return _from(self._targets, self._turn)[::-1]

    def expand(self, target: Target, addresses: Sequence[str]) -> list[Target]:
        """A name's addresses as targets, to be popped: IPv4 first, each family beginning with the next one in turn.

        An address is not in turn each time that its upstream is: with as many upstreams as addresses, the same pairs
        would meet for ever. So the addresses move on when all upstreams have had theirs.
        """
        turn = self._turn // len(self._targets)
        key = target.upstream, tuple(addresses)
        families = self._expanded.get(key)
        if families is None:
            if len(self._expanded) >= EXPANDED:
                self._expanded.clear()
            found = [
                self._target(target.upstream, target.host, target.port, literal(address, target.port))
                for address in addresses
            ]
            families = self._expanded[key] = (
                [one for one in found if one.address is not None and ":" not in one.address[0]],
                [one for one in found if one.address is not None and ":" in one.address[0]],
            )
        v4, v6 = families
        return (_from(v4, turn) + _from(v6, turn))[::-1]

    def _target(self, upstream: int, host: str, port: int, address: Address | None) -> Target:
        dial = Dial(address, "", self._timeout) if address is not None else None
        return Target(upstream, host, port, address, dial)


def _from(row: list[T], turn: int) -> list[T]:
    """The row, beginning with its member number `turn`, counted round and round."""
    start = turn % len(row) if row else 0
    return row[start:] + row[:start]


def literal(host: str, port: int) -> Address | None:
    """The socket address of a literal IPv4 or IPv6 address; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (host, port) if address.version == 4 else (host, port, 0, 0)
