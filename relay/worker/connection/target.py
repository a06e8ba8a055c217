"""What to dial, and what a failed attempt means. Decides; touches no socket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.address import Address
from relay.core.balance import Backend
from relay.engines.contract import Dial


@dataclass(slots=True, eq=False)
class Target(Backend):
    """One address of an upstream, as one worker dials it. Made by `upstreams.Upstreams`, and shared by its listeners.

    The lists have an entry for each source address: see `sources.SourcePorts`.
    """

    upstream: int = 0  # number of the upstream, for the counters
    address: Address | None = None  # None: that of an upstream whose addresses are not known
    dials: list[Dial] = field(default_factory=list)
    cells: int = 0  # see `SourcePorts.cells`
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
