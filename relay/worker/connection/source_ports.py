"""From which local address an upstream is dialled, and how many ports that takes. Decides; touches no socket.

One local address has some 28,000 ports towards one upstream address (ip(7), ip_local_port_range), and a connect that
has to look for one of the last is slow. So each pair is counted: a worker counts its own connections, publishes them in
the shared table, and adds the others' to them. Close to the limit a pair is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core.counters import Layout
from relay.core.limit_table import Cells, Row
from relay.worker.connection.target import Target

KERNEL = ""  # no address of our own choice
NONE = -1
SHUN = 1.0  # seconds that a pair is left alone after the kernel had no port for it


class SourcePorts:
    """The local addresses of one worker. `addresses` are literal; none: the kernel's choice.

    `most` is how many ports all workers together may use for each pair of a local and an upstream address; `blocks` are
    the shared blocks of all workers, of which this is number `own`.
    """

    def __init__(self, addresses: Sequence[str], most: int, layout: Layout, blocks: Sequence[Cells], own: int) -> None:
        self.addresses = [*addresses, KERNEL]
        self._most = most
        self._first, self._width = layout.gauges, layout.sources
        self._block = blocks[own]
        self._others: list[Row] = [block for index, block in enumerate(blocks) if index != own]
        self._targets_of = [1] * layout.upstreams

    def cells(self, upstream: int) -> int:
        """Where the counts of that upstream's connections begin in a block, by source."""
        return self._first + upstream * self._width

    def usable(self, host: str) -> tuple[int, ...]:
        """The numbers of the addresses that can reach a host: of its family, or the kernel's choice without one."""
        own = [n for n, address in enumerate(self.addresses[:-1]) if (":" in address) == (":" in host)]
        return tuple(own) or (len(self.addresses) - 1,)

    def spread_over(self, upstream: int, targets: int) -> None:
        """The upstream has so many addresses: each has ports of its own."""
        self._targets_of[upstream] = max(1, targets)

    def take(self, target: Target, now: float) -> int:
        """The number of the source with the fewest connections to `target`, one more counted; NONE near its limit."""
        usable = target.usable
        if len(usable) == 1 and not self._others:  # as most are
            (best,) = usable
            if target.in_use[best] >= self._most or target.full_until[best] > now:
                return NONE
        else:
            best = self._least_used(target, now)
            if best < 0:
                return NONE
        target.in_use[best] += 1
        self._block[target.cells + best] += 1
        return best

    def _least_used(self, target: Target, now: float) -> int:
        best, least = NONE, self._most
        row, targets = target.cells, self._targets_of[target.upstream]
        for number in target.usable:
            used = target.in_use[number] + sum([block[row + number] for block in self._others]) // targets
            if used < least and target.full_until[number] <= now:
                best, least = number, used
        return best

    def give_back(self, target: Target, number: int) -> None:
        """The connection, or the dial, is over."""
        target.in_use[number] -= 1
        self._block[target.cells + number] -= 1

    def shun(self, target: Target, number: int, now: float) -> None:
        """The kernel has no port left for this pair: others hold some, or closed connections still do (TIME_WAIT)."""
        target.full_until[number] = now + SHUN
