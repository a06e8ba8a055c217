"""Connections without an engine: a test controls everything around them in a worker.

The events that an engine may send depend on the last action that it was answered with; `LEGAL` says which.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count

from relay.address import Address, literal
from relay.core import counters
from relay.core.balance import Balance
from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan
from relay.core.limits import Limits
from relay.core.rates import NANO, SINGLES, Late, RatePlan, Rates
from relay.engines.contract import Action, Close, Dial, Event, Handler, Preread, Pump, Refuse, Wait
from relay.ipc.worker_spec import ProxyProtocol, RouteSpec
from relay.outcome import OUTCOMES, Outcome
from relay.supervisor.host import most_in_use
from relay.worker.connection.access_log import Record
from relay.worker.connection.accounting import Accounting
from relay.worker.connection.admission import Admission
from relay.worker.connection.preread import PrereadFilter, RouteChoice
from relay.worker.connection.record import Found, Frontend
from relay.worker.connection.source_ports import SourcePorts
from relay.worker.connection.transitions import Connection, accept, resume
from relay.worker.connection.upstreams import Route, Upstreams

ALWAYS = (Event.CLIENT_RESET, Event.CLIENT_LOST, Event.STOP, Event.DEFECT)
LEGAL: dict[type[Action], tuple[Event, ...]] = {
    Refuse: (),
    Close: (),
    Wait: ALWAYS,
    Preread: (*ALWAYS, Event.PREREAD, Event.PREREAD_ENDED, Event.PREREAD_TIMEOUT),
    Dial: (*ALWAYS, Event.CONNECTED, Event.DIAL_FAILED, Event.DIAL_TIMEOUT),
    Pump: (
        *ALWAYS,
        Event.FINISHED,
        Event.UPSTREAM_RESET,
        Event.UPSTREAM_LOST,
        Event.IDLE,
        Event.CLIENT_HALF_CLOSE,
        Event.UPSTREAM_HALF_CLOSE,
        Event.DRAINED,
        Event.AGED,
    ),
}
CLIENT: Address = ("192.0.2.1", 40000)
SERVED: Address = ("192.0.2.200", 8883)
LITERAL = (0, "198.51.100.1", 8883)
NAME = (1, "hub.example", 8883)
OTHER_NAME = (2, "hub-2.example", 8883)


def is_on(spec: RouteSpec, route: Route) -> bool:
    return route.resolved or not spec.optional


class Queue:
    """A dial queue without a clock: a queued connection waits until `World.turn`."""

    def __init__(self, rates: Rates, turns: deque[Connection]) -> None:
        self._rates = rates
        self._turns = turns

    def enter(self, connection: Connection) -> bool | Late:
        turn = self._rates.dial()
        if isinstance(turn, Late):
            return turn
        if turn > NANO:
            self._turns.append(connection)
        return turn <= NANO

    def leave(self, connection: Connection) -> None:
        if connection in self._turns:
            self._turns.remove(connection)


class World:
    """What connections need: limits, accounting, upstreams, names that a test answers, the engine's `perform`.

    `known` are the answers known at first; `rates` go by a clock that stands still.
    """

    def __init__(
        self,
        upstreams: list[tuple[int, str, int]],
        known: dict[str, tuple[str, ...]] | None = None,
        plan: LimitPlan | None = None,
        sni: tuple[str, ...] = (),
        *,
        proxy: ProxyProtocol = "off",
        send_proxy: int = 0,
        rates: RatePlan | None = None,
        sources: tuple[str, ...] = (),
        ports: int = 1000,
        dial_timeout: float = 0.0,
        routes: Sequence[RouteSpec] = (),
    ) -> None:
        self.last: dict[Connection, Action] = {}
        self.ended: list[tuple[Connection, Outcome]] = []
        numbers = max((route.number for route in routes), default=-1) + 1
        self.layout = Layout(1, 6, len(OUTCOMES), len(sources) + 1, numbers)
        self.block = [0] * self.layout.size
        plan = plan or LimitPlan(1, 100, 100, (0,))
        cells = [0] * plan.count_cells
        self.limits = Limits(plan, 0, cells, [0] * plan.source_cells, [0] * plan.source_cells, lambda: None)
        ticks = count(1)
        self.late = 0.0  # seconds that a test has let pass

        def clock() -> float:
            return next(ticks) / 1000 + self.late

        self.reported: list[list[str]] = []
        self.sources = SourcePorts(sources, most_in_use(ports), self.layout, [self.block], 0)
        self.upstreams = Upstreams(Balance(1000, 1.0), self.sources, 5.0, self.reported.append)
        for host, addresses in (known or {}).items():
            self.upstreams.resolved(host, addresses)
        wanted = [*upstreams, *(item for spec in routes for item in (*spec.upstreams, *spec.backup))]
        names = dict.fromkeys(host for _, host, port in wanted if not literal(host, port))
        self.unanswered = [host for host in names if host not in (known or {})]
        self.turns: deque[Connection] = deque()
        rates = rates or RatePlan()
        buckets = Rates(rates, [0] * SINGLES, [0] * rates.source_cells, [0] * rates.source_cells, None, lambda: NANO)
        dial_queue = Queue(buckets, self.turns)
        self.frontend = Frontend(
            index=0,
            name="mqtt",
            admission=Admission(self.limits, None, rates=buckets),
            preread=None,
            send_proxy=send_proxy,
            local_address=lambda _: SERVED,
            route=self.upstreams.route(upstreams) if upstreams else None,
            balance=self.upstreams.balance,
            source_ports=self.sources,
            dial_queue=dial_queue if rates.dial.per_second else None,  # type: ignore[arg-type]  # what a connection uses
            resume=resume,
            perform=self.perform,
            accounting=Accounting(self.block, self.layout, clock, self.log),
            clock=clock,
            dial_timeout=dial_timeout,
        )
        if sni or routes or proxy != "off":
            made = [self.upstreams.route(spec.upstreams, spec.backup) for spec in routes]
            preread = self.frontend.preread = PrereadFilter(
                sni,
                5.0,
                proxy,
                [
                    RouteChoice(spec.sni, partial(is_on, spec, route), self.of_route(spec, route))
                    for spec, route in zip(routes, made, strict=True)
                ],
                own=bool(upstreams),
            )
            for route in made:
                route.changed = preread.refresh

    def of_route(self, spec: RouteSpec, route: Route) -> Frontend:
        accounting = self.frontend.accounting
        assert isinstance(accounting, Accounting)
        return replace(self.frontend, route=route, route_name=spec.name, accounting=accounting.of_route(spec.number))

    def answer(self, *addresses: str) -> None:
        """Answer the first name that has no answer yet."""
        self.upstreams.resolved(self.unanswered.pop(0), addresses)

    def turn(self) -> None:
        """It is the turn of the connection that has waited longest."""
        resume(self.turns.popleft(), Found.TURN)

    def in_use(self) -> int:
        """Local ports that are counted."""
        return sum(self.block[self.layout.gauges : self.layout.failed(0)])

    def perform(self, connection: Handler, action: Action) -> None:
        assert isinstance(connection, Connection)
        self.last[connection] = action

    def log(self, connection: Record, outcome: Outcome, seconds: float) -> None:
        assert isinstance(connection, Connection)
        assert seconds > 0
        self.ended.append((connection, outcome))

    def accept(self) -> Connection:
        connection, action = accept(self.frontend, CLIENT)
        self.last[connection] = action
        return connection

    def send(self, connection: Connection, event: Event, value: object = None) -> Action:
        assert event in LEGAL[type(self.last[connection])]
        self.last[connection] = connection.advance(event, value)
        return self.last[connection]

    def counted(self) -> Counter[Outcome]:
        start = self.layout.listener(0) + counters.OUTCOME
        return Counter({outcome: n for outcome in OUTCOMES if (n := self.block[start + outcome.index])})

    def outcome(self, connection: Connection) -> Outcome:
        """The outcome of a connection that has ended."""
        (outcome,) = [outcome for one, outcome in self.ended if one is connection]
        return outcome
