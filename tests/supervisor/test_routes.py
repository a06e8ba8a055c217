"""The state of routes, and what the log is told of its changes: a line for all routes of one name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.ipc.worker_spec import NO_BUCKET, RouteSpec
from relay.supervisor.instance import Numbers
from relay.supervisor.routes import Routes, RouteState
from relay.supervisor.upstreams.monitor import UpstreamState
from tests.support.service_log import QuietLog

OWN, PRIMARY, SECOND, BACKUP = range(4)
UP = UpstreamState((("192.0.2.1:1", True),), "", None)
DOWN = UpstreamState((("192.0.2.1:1", False),), "", None)
BARRED = UpstreamState((("192.0.2.1:1", False),), "", None, {"192.0.2.1:1": "own"})
LOST = UpstreamState((), "NXDOMAIN", None)
UNKNOWN = UpstreamState((), "", None, known=False)


class Log(QuietLog):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, list[str]]] = []
        self.bound: dict[str, Any] = {}

    def bind(self, **fields: Any) -> Log:
        self.bound = fields
        return self

    def info(self, event: str, **_fields: Any) -> None:
        self.lines.append(("info", event.partition(":")[0], self.bound["listeners"]))

    def warning(self, event: str, **_fields: Any) -> None:
        self.lines.append(("warning", event.partition(":")[0], self.bound["listeners"]))


class Rig:
    """Two listeners with a route of the same name and upstreams each; the test sets the upstreams' states."""

    def __init__(self, *, optional: bool = False, backup: bool = True) -> None:
        self.states = {OWN: UP, PRIMARY: UP, SECOND: DOWN, BACKUP: UP}
        destinations = ((PRIMARY, "a", 1), (SECOND, "b", 1))
        spare = ((BACKUP, "c", 1),) if backup else ()
        specs = [RouteSpec(n, "r", ("r.example",), destinations, spare, NO_BUCKET, optional) for n in range(2)]
        self.listeners = [
            SimpleNamespace(name=name, upstreams=((OWN, "o", 1),), routes=(spec,))
            for name, spec in zip(("mqtt", "amqp"), specs, strict=True)
        ]
        upstreams = {"o:1": OWN, "a:1": PRIMARY, "b:1": SECOND, "c:1": BACKUP}
        numbers = Numbers({"mqtt": 0, "amqp": 1}, upstreams, {("mqtt", "r"): 0, ("amqp", "r"): 1}, {})
        self.instance: Any = SimpleNamespace(
            listeners=self.listeners,
            numbers=numbers,
            upstreams=list(upstreams),
            optional_upstreams=frozenset({PRIMARY, SECOND, BACKUP} if optional else ()),
        )
        self.log = Log()
        self.version = 0
        log: Any = self.log
        self.routes = Routes(cast(Any, self.instance), self.states.__getitem__, lambda: self.version, log)
        self.spec = specs[0]

    def now(self, primary: UpstreamState, backup: UpstreamState = UP) -> RouteState:
        self.states[PRIMARY], self.states[BACKUP] = primary, backup
        self.version += 1
        self.routes.update()
        return self.routes.state(self.spec)


@pytest.mark.parametrize(
    ("primary", "second", "backup", "state"),
    [
        (UP, DOWN, UP, RouteState.UP),
        (LOST, UP, UP, RouteState.UP),
        (DOWN, DOWN, UP, RouteState.BACKUP),
        (LOST, LOST, UP, RouteState.BACKUP),
        (BARRED, BARRED, UP, RouteState.BACKUP),
        (DOWN, LOST, DOWN, RouteState.DOWN),
        (UNKNOWN, LOST, UP, RouteState.UNKNOWN),
        (UNKNOWN, DOWN, UP, RouteState.BACKUP),
    ],
)
def test_the_state(primary: UpstreamState, second: UpstreamState, backup: UpstreamState, state: RouteState) -> None:
    rig = Rig()
    rig.states[SECOND] = second
    assert rig.now(primary, backup) is state


def test_each_change_is_a_line_for_all_listeners() -> None:
    rig, both = Rig(), ["mqtt", "amqp"]
    rig.states[SECOND] = LOST
    rig.now(UNKNOWN)
    rig.now(UP)
    assert rig.log.lines == []
    rig.now(DOWN)
    rig.now(DOWN)
    assert rig.log.lines == [("warning", "route on backup", both)]
    rig.now(DOWN, DOWN)
    rig.now(DOWN, UP)
    rig.now(UP)
    assert rig.log.lines[1:] == [
        ("warning", "route without upstream", both),
        ("warning", "route on backup", both),
        ("info", "route back on its upstreams", both),
    ]


@pytest.mark.parametrize("lost", [LOST, BARRED])
def test_an_optional_route_is_off_and_hidden_until_it_resolves(lost: UpstreamState) -> None:
    rig = Rig(optional=True, backup=False)
    rig.states[SECOND] = LOST
    assert rig.now(lost) is RouteState.OFF
    rig.now(lost)
    assert rig.log.lines == [("info", "route off", ["mqtt", "amqp"])]
    hidden = {PRIMARY, SECOND, BACKUP}
    assert rig.routes.hidden_routes() == {0, 1}
    assert rig.routes.hidden_upstreams(ever=True) == rig.routes.hidden_upstreams(ever=False) == hidden
    assert rig.now(DOWN) is RouteState.DOWN, "it resolves, so its checks count"
    assert rig.log.lines[1:] == [("info", "route on", ["mqtt", "amqp"])]
    assert not rig.routes.hidden_routes()
    assert rig.routes.hidden_upstreams(ever=False) == {BACKUP}, "nobody has it"
    rig.now(lost)
    assert rig.log.lines[2:] == [("info", "route off", ["mqtt", "amqp"])]
    assert rig.routes.hidden_upstreams(ever=False) == hidden, "gauges go"
    assert rig.routes.hidden_upstreams(ever=True) == {BACKUP}, "counters stay"
    rig.listeners[0].routes = ()
    rig.listeners[1].routes = ()
    assert not rig.routes.hidden_routes(), "removed, not hidden"
