"""The targets of dials: upstream addresses, and those that a connection has still to try. Plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.address import Address
from relay.core.balance import Backend
from relay.engines.contract import Dial


@dataclass(slots=True, eq=False)
class Target(Backend):
    """One address of an upstream, as one worker dials it. `upstreams.Upstreams` makes it, all listeners share it.

    The lists have an entry for each source address: see `source_ports.SourcePorts`.
    """

    upstream: int = 0  # number of the upstream, for the counters
    address: Address | None = None  # None: the upstream has no known address
    dials: list[Dial] = field(default_factory=list)
    cells: int = 0  # see `SourcePorts.cells`
    usable: tuple[int, ...] = ()  # numbers of the sources of the address's family
    in_use: list[int] = field(default_factory=list)  # ports in use by this worker: connections, and dials under way
    full_until: list[float] = field(default_factory=list)  # monotonic seconds: the source is paused until then


class Attempts(list[Target]):
    """The targets still to be tried by a connection whose first dial failed, the next one last.

    `until` is the end of dial.timeout for this connection, in monotonic seconds.
    """

    __slots__ = ("until",)

    def __init__(self, targets: Iterable[Target], until: float) -> None:
        super().__init__(targets)
        self.until = until
