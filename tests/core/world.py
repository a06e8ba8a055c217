"""Connections without an engine: what surrounds them in a worker, held in the hand.

The events that an engine may send depend on the last action that it was answered with; `LEGAL` says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

from relay.account import Ledger, Record
from relay.admit import Admission
from relay.connection import Connection, Frontend, accept
from relay.core import counters
from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan
from relay.core.limits import Limits
from relay.dial import Route
from relay.engines.contract import Action, Address, Close, Dial, Event, Pump, Refuse, Sniff, Wait
from relay.outcome import OUTCOMES, Outcome
from relay.resolve import Lookup
from relay.sniff import Gate

ALWAYS = (Event.CLIENT_RESET, Event.CLIENT_LOST, Event.STOP, Event.DEFECT)
LEGAL: dict[type[Action], tuple[Event, ...]] = {
    Refuse: (),
    Close: (),
    Wait: ALWAYS,
    Sniff: (*ALWAYS, Event.SNIFFED, Event.SNIFF_ENDED, Event.SNIFF_TIMEOUT),
    Dial: (*ALWAYS, Event.CONNECTED, Event.DIAL_FAILED, Event.DIAL_TIMEOUT),
    Pump: (
        *ALWAYS,
        Event.FINISHED,
        Event.UPSTREAM_RESET,
        Event.UPSTREAM_LOST,
        Event.IDLE,
        Event.CLIENT_HALF_CLOSE,
        Event.UPSTREAM_HALF_CLOSE,
    ),
}
CLIENT: Address = ("192.0.2.1", 40000)
LITERAL = (0, "198.51.100.1", 8883)
NAME = (1, "hub.example", 8883)
OTHER_NAME = (2, "hub-2.example", 8883)


class World:
    """What surrounds connections: limits, ledger, a resolver that answers when told to, and the engine's ears."""

    def __init__(
        self,
        upstreams: list[tuple[int, str, int]],
        known: dict[str, tuple[str, ...]] | None = None,
        plan: LimitPlan | None = None,
        sni: tuple[str, ...] = (),
    ) -> None:
        self.known = known or {}  # names that need no asking
        self.asked: list[tuple[str, Callable[[Lookup], None]]] = []
        self.last: dict[Connection, Action] = {}
        self.ended: list[tuple[Connection, Outcome]] = []
        self.layout = Layout(1, 3, len(OUTCOMES))
        self.block = [0] * self.layout.size
        plan = plan or LimitPlan(1, 100, 100, (0,))
        cells = [0] * plan.count_cells
        self.limits = Limits(plan, 0, cells, [0] * plan.source_cells, [0] * plan.source_cells, lambda: None)
        ticks = count(1)

        def clock() -> float:
            return next(ticks) / 1000

        names, upstream_names = ["mqtt"], ["a", "b", "c"]
        self.frontend = Frontend(
            index=0,
            name="mqtt",
            admission=Admission(self.limits, None),
            gate=Gate(sni, 5.0) if sni else None,
            route=Route(upstreams, 5.0),
            lookup=self.lookup,
            perform=self.perform,
            ledger=Ledger(self.block, self.layout, names, upstream_names, clock, self.log),
            clock=clock,
        )

    def lookup(self, host: str, done: Callable[[Lookup], None]) -> Lookup | None:
        if host in self.known:
            return Lookup(self.known[host], 1e9)
        self.asked.append((host, done))
        return None

    def answer(self, *addresses: str) -> None:
        """Answer the oldest look-up."""
        _, done = self.asked.pop(0)
        done(Lookup(addresses, 1e9, "" if addresses else "no such name"))

    def perform(self, connection: Connection, action: Action) -> None:
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
