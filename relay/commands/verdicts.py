"""What becomes of one client's connection, on each listener: customer, limits, route. For `relay check`.

What decides in a worker decides here as well: `AccessList`, the customers' table, `Admission`, `Router`. It decides for
a relay without connections, so limits and rates are told and refuse nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.core.access_list import AccessList
from relay.core.customer_counters import CustomerLayout
from relay.core.customer_slots import CustomerSlots
from relay.core.customers import NOBODY, SLOTS, CustomerTable
from relay.core.limit_table import LimitPlan
from relay.core.limits import Lease, Limits
from relay.core.rates import RatePlan, Rates
from relay.core.routes import OWN, Router
from relay.outcome import REFUSALS, Outcome
from relay.settings.inherited import access
from relay.settings.listeners import Listener, Route
from relay.settings.model import Settings
from relay.supervisor.customers import compiled
from relay.worker.connection.admission import REFUSAL_OUTCOMES, Admission
from relay.worker.connection.customers import Customers


def verdicts(settings: Settings, client: str | None, sni: str | None) -> Iterator[str]:
    """For each listener a line: what becomes of a connection from the address `client` that asks for the name `sni`.

    None: not given. With `sni` it is a TLS client, which with "" asks for no name. An optional route is taken as on,
    and what would be while it is off is said as well.
    """
    desk = _Desk(settings) if client is not None else None
    for number, item in enumerate(settings.listeners):
        asks = "" if sni is None else f" that asks for {sni}" if sni else " that asks for no name"
        text = f"listener {item.name}: a client{f' from {client}' if client is not None else ''}{asks}: "
        if desk is not None and client is not None:
            refused, found = desk.admit(number, item, client)
            text += found + ": "
            if refused is not None:
                yield f"{text}refused ({refused.label})"
                continue
        yield text + _led(item, sni)


class _Desk:
    """Admits connections as a worker without connections does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        names = {item.name: number for number, item in enumerate(settings.listeners)}
        slots = CustomerSlots().change([item.name for item in settings.customers], lambda _slot: False).slots
        self._by_slot = {slots.present[item.name]: item for item in settings.customers}
        count = len(settings.listeners)
        plan = LimitPlan(
            1, 1 << 20, 1 << 20, tuple(item.max_connections for item in settings.listeners), customers=SLOTS
        )
        self._table: CustomerTable | None = None
        if settings.customers:
            self._table = CustomerTable(compiled(settings, slots, names, count))
        limits = Limits(
            plan, 0, [0] * plan.count_cells, [], [], lambda: None, [0] * plan.customer_cells,
            self._table.limits if self._table is not None else [],
        )  # fmt: skip
        rates = Rates(RatePlan(customers=SLOTS), [], [], [], None, lambda: 1 << 62, [0] * SLOTS)
        layout = CustomerLayout(SLOTS, len(REFUSALS))
        self._customers = Customers([0] * layout.size, layout)
        self._customers.use(self._table, 1, limits, rates)
        self._limits = limits

    def admit(self, number: int, item: Listener, client: str) -> tuple[Outcome | None, str]:
        """Why the connection is refused, None if it is not; and customer and limits in words."""
        address = (client, 0)
        admission = self._admission(item)
        slot = self._customers.find(client, None) if self._table is not None else NOBODY
        if self._table is None:
            result = admission.admit(number, address)
        elif slot == NOBODY:
            result = admission.admit_nobody(number, address)
        else:
            result = admission.admit_customer(self._customers, slot, number, address)
        found = "no customer" if slot == NOBODY else f"customer {self._by_slot[slot].name}"
        if isinstance(result, Lease):
            result.release()
            return None, f"{found}, {self._limits_of(item, slot)}"
        return REFUSAL_OUTCOMES[result], found

    def _admission(self, item: Listener) -> Admission:
        """The admission of a listener, with its own access list or the instance's."""
        lists = access(self._settings.access, item)
        return Admission(
            self._limits,
            None,
            AccessList(lists.allow, lists.deny) if lists.allow or lists.deny else None,
            None,
            AccessList((), lists.deny) if lists.deny else None,
            only_customers=bool(self._settings.customers) and not lists.allow,
        )

    def _limits_of(self, item: Listener, slot: int) -> str:
        """The limits that may refuse the connection, in the order in which they are checked."""
        limits = self._settings.limits
        found: list[str] = []

        def add(most: float, what: str, whose: str) -> None:
            if most:
                found.append(f"{most:g}{what} {whose}")

        add(limits.connect_rate_per_source, "/s", "of the source")
        if slot != NOBODY:
            add(self._by_slot[slot].connect_rate, "/s", "of the customer")
        add(limits.accept_rate, "/s", "in all")
        if slot != NOBODY:
            add(self._by_slot[slot].max_connections, " connections", "of the customer")
        add(limits.max_connections, " connections", "in all")
        add(item.max_connections, " connections", "of the listener")
        add(limits.max_connections_per_source, " connections", "of the source")
        return f"at most {', '.join(found)}" if found else "no limit of its own"


def _led(item: Listener, sni: str | None) -> str:
    """Where an admitted connection goes."""
    on = list(item.routes)
    if sni is None:
        if item.upstream and not item.sni and not on:
            return f"to {', '.join(item.upstream)}"
        return "admitted; where it goes depends on the name that it asks for: see --sni"
    text = _decided(item, on, sni)
    while (position := Router([route.sni for route in on], item.sni, own=bool(item.upstream)).decide(sni)) is not None:
        if position == OWN or not on[position].optional:
            break
        del on[position]
        text += f"; while that is off, {_decided(item, on, sni)}"
    return text


def _decided(item: Listener, routes: Sequence[Route], sni: str) -> str:
    position = Router([route.sni for route in routes], item.sni, own=bool(item.upstream)).decide(sni)
    if position is None:
        return f"refused ({Outcome.REFUSED_SNI.label})"
    if position == OWN:
        return f"no route, to {', '.join(item.upstream)}"
    return f"route {routes[position].name}, to {leads_to(routes[position])}"


def leads_to(route: Route) -> str:
    """Where a route leads to, and under which conditions."""
    text = ", ".join(route.upstream)
    if route.backup:
        text += f"; while all are down: {', '.join(route.backup)}"
    if route.rate:
        text += f"; {route.rate:g}/s"
    return text + ("; off while that does not resolve" if route.optional else "")
