"""The state of the routes: on their own upstreams, on their backup, without an upstream, or off.

The workers find the same from the same messages of the upstream monitor. Here it is for the log, the metrics and the
health paths.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from relay.ipc.worker_spec import Destinations, RouteSpec
from relay.supervisor.instance import Instance
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.upstreams.monitor import UpstreamState


class RouteState(enum.Enum):
    """Where new connections of a route go."""

    UP = "up"  # to its upstreams
    BACKUP = "backup"  # to its backup, since all of its upstreams are down
    DOWN = "down"  # nowhere that is known to answer
    OFF = "off"  # the route is optional, and no name of its upstreams resolves: it counts as not written
    UNKNOWN = "unknown"  # the first look-up of a name has not ended yet


class Routes:
    """The routes of all listeners. `log` is the service log.

    `state` gives an upstream's state by its number, and `version` a number that changes with any of them.
    """

    def __init__(
        self,
        instance: Instance,
        state: Callable[[int], UpstreamState],
        version: Callable[[], int],
        log: ServiceLog,
    ) -> None:
        self._instance = instance
        self._state = state
        self._version = version
        self._log = log
        self._found: dict[int, RouteState] = {}  # by number of the route, as of `_found_at`
        self._found_at: tuple[object, int] = (None, -1)  # the listeners and the version of the upstreams' states
        self._last: dict[int, RouteState] = {}  # by number of the route, as last logged
        # Numbers of routes that have not always been off, and of their upstreams and those of listeners.
        self._shown: set[int] = set()
        self._shown_upstreams: set[int] = set()

    def state(self, route: RouteSpec) -> RouteState:
        """The state of a current route now."""
        at = self._instance.listeners, self._version()
        if at[0] is not self._found_at[0] or at[1] != self._found_at[1]:
            routes = [route for bound in self._instance.listeners for route in bound.routes]
            self._found = {route.number: self._look(route) for route in routes}
            self._found_at = at
        return self._found[route.number]

    def _look(self, route: RouteSpec) -> RouteState:
        states = [self._state(number) for number, _, _ in route.upstreams]
        if any(state.up for state in states):
            return RouteState.UP
        resolved = any(address not in state.barred for state in states for address, _ in state.addresses)
        if not resolved and not all(state.known for state in states):
            return RouteState.UNKNOWN
        if route.optional and not resolved:
            return RouteState.OFF
        return RouteState.BACKUP if any(self._state(n).up for n, _, _ in route.backup) else RouteState.DOWN

    def update(self) -> None:
        """Log what has changed since the last call, a line for all routes of one name."""
        changed: dict[tuple[str, RouteState, RouteState | None], list[str]] = {}
        current: dict[int, RouteState] = {}
        specs: dict[str, RouteSpec] = {}
        for bound in self._instance.listeners:
            self._shown_upstreams.update(number for number, _, _ in bound.upstreams)
            for route in bound.routes:
                state = self.state(route)
                if state is not RouteState.UNKNOWN:
                    current[route.number] = state
                if not route.optional or state not in (RouteState.OFF, RouteState.UNKNOWN):
                    self._shown.add(route.number)
                    self._shown_upstreams.update(number for number, _, _ in (*route.upstreams, *route.backup))
                before = self._last.get(route.number)
                if state is not before and state is not RouteState.UNKNOWN:
                    specs[route.name] = route
                    changed.setdefault((route.name, state, before), []).append(bound.name)
        self._last = current
        for (name, state, before), listeners in changed.items():
            self._say(specs[name], state, before, listeners)

    def _say(self, route: RouteSpec, state: RouteState, before: RouteState | None, listeners: list[str]) -> None:
        log = self._log.bind(route=route.name, listeners=listeners)
        if state is RouteState.OFF:
            names = [host for _, host, _ in route.upstreams]
            log.info("route off: its upstream does not resolve, and the route is optional", names=names)
        elif before is RouteState.OFF:
            log.info("route on", upstream=self._texts(route.upstreams))
        elif state is RouteState.BACKUP:
            log.warning("route on backup: all of its upstreams are down", backup=self._texts(route.backup))
        elif before is RouteState.BACKUP and state is RouteState.UP:
            log.info("route back on its upstreams", upstream=self._texts(route.upstreams))
        elif before is RouteState.BACKUP:
            log.warning("route without upstream: its backup is down too", backup=self._texts(route.backup))

    def _texts(self, destinations: Destinations) -> list[str]:
        return [self._instance.upstreams[number] for number, _, _ in destinations]

    def hidden_routes(self) -> set[int]:
        """The numbers of routes that have always been off."""
        self.update()
        return set(self._instance.numbers.routes.values()) - self._shown

    def hidden_upstreams(self, *, ever: bool) -> set[int]:
        """The numbers of upstreams that only routes which are off have; `ever`: which have always been off."""
        if ever:
            self.update()
            return set(self._instance.numbers.upstreams.values()) - self._shown_upstreams
        on = {
            number
            for bound in self._instance.listeners
            for route in bound.routes
            if self._last.get(route.number, RouteState.OFF) is not RouteState.OFF
            for number, _, _ in (*route.upstreams, *route.backup)
        }
        return set(self._instance.optional_upstreams) - on
