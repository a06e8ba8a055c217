"""The customers of one worker, as the latest reload has them: whose a connection is, whether it is admitted, counters.

All frontends share one object, also those of earlier reloads, because a connection that waits for its PROXY header may
outlive a reload, and because each earlier table would take as much memory as the present one. Its table keeps the names
of removed customers who still have connections. It only decides and counts; it touches no socket.
"""

from __future__ import annotations

from relay.core import customer_counters as cells
from relay.core.customer_counters import CustomerLayout
from relay.core.customers import NOBODY, CustomerTable
from relay.core.limit_table import Cells
from relay.core.limits import Lease, Limits, Refusal
from relay.core.rates import Rates
from relay.outcome import REFUSALS, Outcome
from relay.worker.connection.admission import Denied, pack

_REASONS = {outcome: number for number, outcome in enumerate(REFUSALS)}


class Customers:
    """One worker's customers. `block` are its counters in the shared table; it is the only writer.

    Without a table there are no customers: every connection is nobody's.
    """

    def __init__(self, block: Cells, layout: CustomerLayout) -> None:
        self._block = block
        self._layout = layout
        self._table: CustomerTable | None = None
        self._limits: Limits | None = None
        self._rates: Rates | None = None

    def use(self, table: CustomerTable | None, number: int, limits: Limits, rates: Rates) -> None:
        """Use another table for all further connections; `number` is the table's, which the supervisor reads here."""
        if self._limits is not None:
            self._limits.forget_customers()  # leases keep the limits of before, and those would keep their table
        self._table, self._limits, self._rates = table, limits, rates
        if len(self._block):
            self._block[cells.TABLE] = number

    @property
    def any(self) -> bool:
        """Whether there are customers."""
        return self._table is not None

    def find(self, host: str, link_id: int | None) -> int:
        """The slot of the customer whose a connection from this address is, or NOBODY.

        A Private Link id decides alone, because consumers' private addresses overlap.
        """
        table = self._table
        if table is None:
            return NOBODY
        return table.of_address(pack(host)) if link_id is None else table.of_link(link_id)

    def name(self, slot: int) -> str:
        """The customer's name; empty for NOBODY."""
        return self._table.name(slot) if self._table is not None else ""

    def admit(self, slot: int, listener: int, source: int) -> Lease | Refusal | Denied:
        """Admit a connection of the customer, who has passed what is common to all, or say why it is refused."""
        table, limits, rates = self._table, self._limits, self._rates
        assert table is not None and limits is not None and rates is not None
        interval = table.intervals[slot]
        if interval and not rates.customer(slot, interval, table.tolerances[slot]):
            return Denied.CUSTOMER_RATE
        if rates.limits_accepts and not rates.accept():
            return Denied.ACCEPT_RATE
        return limits.acquire_for(slot, listener, source)

    def may_use(self, slot: int, listener: int) -> bool:
        """Whether the customer may use listener number `listener`."""
        return self._table is not None and self._table.may_use(slot, listener)

    def accepted(self, slot: int) -> None:
        """Count a connection of the customer, admitted or not."""
        self._block[self._layout.totals(slot) + cells.ACCEPTED] += 1

    def moved(self, slot: int, up: int, down: int) -> None:
        """Count bytes received from the client (`up`) and from the upstream (`down`)."""
        block, start = self._block, self._layout.totals(slot)
        if up:
            block[start + cells.BYTES_UP] += up
        if down:
            block[start + cells.BYTES_DOWN] += down

    def closed(self, slot: int, outcome: Outcome) -> None:
        """Count the end of a connection that `accepted` has counted."""
        block, start = self._block, self._layout.totals(slot)
        reason = _REASONS.get(outcome)
        if reason is not None:
            block[self._layout.refusals(slot) + reason] += 1  # before the sum: see `customer_counters.look`
            block[start + cells.REFUSED] += 1
        block[start + cells.ENDED] += 1
