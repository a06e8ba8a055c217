"""Connections without an engine, where clients are told apart by customer."""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import customer_counters as cells
from relay.core.access_list import AccessList
from relay.core.customer_counters import CustomerLayout, look
from relay.core.customers import Customer, CustomerTable, compile_table
from relay.core.limit_table import LimitPlan
from relay.core.limits import Limits
from relay.core.rates import NANO, SINGLES, RatePlan, Rates
from relay.ipc.worker_spec import ProxyProtocol
from relay.outcome import REFUSALS
from relay.worker.connection.admission import Admission
from relay.worker.connection.customers import Customers
from tests.worker.connection.world import LITERAL, World

SLOTS = 8


class CustomerWorld(World):
    """A world with customers, who are the only ones admitted unless `allow` has somebody."""

    def __init__(
        self,
        customers: Sequence[Customer],
        *,
        proxy: ProxyProtocol = "off",
        sni: tuple[str, ...] = (),
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        instance: int = 100,
    ) -> None:
        plan = LimitPlan(1, instance, 100, (0,), customers=SLOTS)
        super().__init__([LITERAL], plan=plan, proxy=proxy, sni=sni)
        self._plan = plan
        self._cells = [0] * plan.count_cells
        self.customer_rows = [0] * plan.customer_cells
        self.customer_layout = CustomerLayout(SLOTS, len(REFUSALS))
        self.customer_block = [0] * self.customer_layout.size
        self._buckets = [0] * SLOTS
        self.customers = Customers(self.customer_block, self.customer_layout)
        self.reload(customers, allow=allow, deny=deny)

    def reload(self, customers: Sequence[Customer], *, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        """Use other customers, as a reload does; connections keep the frontend that they have."""
        table = CustomerTable(compile_table(customers, 2))
        self.limits = Limits(self._plan, 0, self._cells, [], [], lambda: None, self.customer_rows, table.limits)
        plan = RatePlan(customers=SLOTS)
        rates = Rates(plan, [0] * SINGLES, [], [], None, lambda: NANO, self._buckets)
        self.customers.use(table, 1, self.limits, rates)
        self.frontend.admission = Admission(
            self.limits,
            None,
            AccessList(allow, deny) if allow or deny else None,
            None,
            AccessList((), deny) if deny else None,
            only_customers=not allow,
        )
        self.frontend.customers = self.customers

    def totals(self, slot: int) -> dict[str, int]:
        """The customer's counters, as the supervisor reads them; those that are 0 are left out."""
        seen = [0] * self.customer_layout.size
        look(self.customer_layout, self.customer_block, seen, [slot], 100)
        start, refusals = self.customer_layout.totals(slot), self.customer_layout.refusals(slot)
        found = {
            "active": seen[start + cells.ACCEPTED] - seen[start + cells.ENDED],
            "accepted": seen[start + cells.ACCEPTED],
            "up": seen[start + cells.BYTES_UP],
            "down": seen[start + cells.BYTES_DOWN],
        }
        found |= {outcome.label: seen[refusals + number] for number, outcome in enumerate(REFUSALS)}
        return {name: count for name, count in found.items() if count}
