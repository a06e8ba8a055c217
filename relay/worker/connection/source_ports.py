"""Source ports: from which local address an upstream is dialled. This module only decides; it touches no socket.

One local address has about 28,000 ports towards one upstream address (ip(7), ip_local_port_range), and connect(2) is
slow at finding one of the last. So the ports of each pair of addresses are counted: a worker counts its own
connections, publishes the counts in the shared table, and adds those of the other workers. A pair is not used any more
when its count reaches the limit, which leaves the last ports out.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core.counters import Layout
from relay.core.limit_table import Cells, Row
from relay.worker.connection.target import Target

KERNEL = ""  # no source address is set: the kernel chooses
NONE = -1
EXHAUSTED = 1.0  # seconds for which a pair is not used after the kernel had no port left for it


class SourcePorts:
    """The source addresses of one worker. `addresses` are literal; if empty, the kernel chooses.

    `limit` is the number of ports that all workers together may use for each pair of a local and an upstream address.
    `blocks` are the shared blocks of all workers; `own` is this worker's index.
    """

    def __init__(self, addresses: Sequence[str], limit: int, layout: Layout, blocks: Sequence[Cells], own: int) -> None:
        self.addresses = [*addresses, KERNEL]
        self._limit = limit
        self._first, self._width = layout.gauges, layout.sources
        self._block = blocks[own]
        self._others: list[Row] = [block for index, block in enumerate(blocks) if index != own]
        self._target_counts = [1] * layout.upstreams  # addresses of each upstream

    def cells(self, upstream: int) -> int:
        """The first cell, in a block, of the upstream's connection counts; there is one for each source."""
        return self._first + upstream * self._width

    def usable(self, host: str) -> tuple[int, ...]:
        """The numbers of the source addresses of the host's family; without one, the kernel chooses."""
        own = [n for n, address in enumerate(self.addresses[:-1]) if (":" in address) == (":" in host)]
        return tuple(own) or (len(self.addresses) - 1,)

    def spread_over(self, upstream: int, targets: int) -> None:
        """Set the number of the upstream's addresses: other workers' connections are taken as spread over them."""
        self._target_counts[upstream] = max(1, targets)

    def take(self, target: Target, now: float) -> int:
        """Count a port of the source least used towards `target`, and return its number; NONE: all are at the limit."""
        usable = target.usable
        if len(usable) == 1 and not self._others:  # the usual case
            (best,) = usable
            if target.in_use[best] >= self._limit or target.full_until[best] > now:
                return NONE
        else:
            best = self._least_used(target, now)
            if best < 0:
                return NONE
        target.in_use[best] += 1
        self._block[target.cells + best] += 1
        return best

    def _least_used(self, target: Target, now: float) -> int:
        best, least = NONE, self._limit
        row, targets = target.cells, self._target_counts[target.upstream]
        for number in target.usable:
            used = target.in_use[number] + sum([block[row + number] for block in self._others]) // targets
            if used < least and target.full_until[number] <= now:
                best, least = number, used
        return best

    def give_back(self, target: Target, number: int) -> None:
        """Uncount the port of a connection or dial that is over."""
        target.in_use[number] -= 1
        self._block[target.cells + number] -= 1

    def mark_exhausted(self, target: Target, number: int, now: float) -> None:
        """Pause a pair for which the kernel has no port left: other programs or TIME_WAIT hold the rest."""
        target.full_until[number] = now + EXHAUSTED
