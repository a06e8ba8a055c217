"""What to dial, and what a failed attempt means. Decides; touches no socket."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.core.balance import Backend
from relay.engines.contract import Address, Dial
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
    errno.EAGAIN: Outcome.NO_RESOURCES,
    # connect(2): "all port numbers in the ephemeral port range are currently in use".
    errno.EADDRNOTAVAIL: Outcome.NO_SOURCE_PORT,
}

# Of this machine, not of the upstream.
OWN_FAULTS = frozenset({Outcome.NO_RESOURCES, Outcome.NO_SOURCE_PORT})


@dataclass(slots=True, eq=False)
class Target(Backend):
    """One address of an upstream, as one worker dials it. Made by `upstreams.Upstreams`, and shared by its listeners.

    The lists have an entry for each source address: see `sources.Sources`.
    """

    upstream: int = 0  # number of the upstream, for the counters
    address: Address | None = None  # None: that of an upstream whose addresses are not known
    dials: list[Dial] = field(default_factory=list)
    cells: int = 0  # see `Sources.cells`
    usable: tuple[int, ...] = ()  # sources of the address's family
    in_use: list[int] = field(default_factory=list)  # this worker's connections, and dials under way
    full_until: list[float] = field(default_factory=list)  # monotonic seconds: the kernel had no port left then


class Attempts(list[Target]):
    """The targets that a connection has still to try after its first dial has failed, the next one last.

    `until` is the end of dial.timeout for this connection, in monotonic seconds.
    """

    __slots__ = ("until",)

    def __init__(self, targets: Iterable[Target], until: float) -> None:
        super().__init__(targets)
        self.until = until


def literal(host: str, port: int) -> Address | None:
    """The socket address of a literal IPv4 or IPv6 address; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (host, port) if address.version == 4 else (host, port, 0, 0)
