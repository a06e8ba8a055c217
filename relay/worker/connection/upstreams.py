"""A worker's view of the upstreams: the addresses that the supervisor sends, and which of them are up.

The supervisor resolves names and checks addresses (`supervisor.upstreams`), once for all workers. Its results take
effect for new connections; established ones stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from relay.address import Address, literal
from relay.core.balance import Balance, Ejection
from relay.engines.contract import Dial
from relay.ipc.worker_spec import Destinations
from relay.worker.connection.source_ports import SourcePorts
from relay.worker.connection.target import Target

NEVER_REPORTED = -60.0  # monotonic seconds, long enough ago
REPORT_INTERVAL = 1.0  # seconds, at least, between two reports of failing upstreams


class Upstreams:
    """All upstreams of one worker.

    `timeout` is for each dial, in seconds. `report(hosts)` tells the supervisor that no address of these hosts could be
    connected to.
    """

    def __init__(
        self, balance: Balance, sources: SourcePorts, timeout: float, report: Callable[[list[str]], None]
    ) -> None:
        self.balance = balance
        self.sources = sources
        self._timeout = timeout
        self._report = report
        self._reported_at = NEVER_REPORTED
        self._targets: dict[tuple[int, Address], Target] = {}
        self._down: set[tuple[int, Address]] = set()
        self._ejections: Mapping[int, Ejection] = {}
        self._routes: list[Route] = []
        self._answers: dict[str, tuple[str, ...]] = {}
        self.barred: frozenset[tuple[str, int]] = frozenset()

    def route(self, upstreams: Destinations, backup: Destinations = ()) -> Route:
        """Make a route, of a listener or its own; `upstreams` and `backup` are (number, host, port), one at least."""
        route = BackedRoute(self, upstreams, backup) if backup else Route(self, upstreams)
        self.add(route)
        return route

    def add(self, route: Route) -> None:
        """Update the route whenever addresses change."""
        if route not in self._routes:
            self._routes.append(route)
            route.update(self._answers)

    def configure(self, timeout: float, ejections: Mapping[int, Ejection]) -> None:
        """Forget the routes before a reload makes new ones; a route with waiting connections is kept until they go on.

        `timeout` is for each dial from now on, in seconds; `ejections` are those of upstreams, by number, that do not
        have the Balance's.
        """
        self._ejections = ejections
        self._routes = [route for route in self._routes if route.has_waiting]
        self._timeout = timeout
        for (number, _), target in self._targets.items():
            assert target.address is not None
            target.ejection = ejections.get(number)
            target.dials[:] = [Dial(target.address, source, timeout) for source in self.sources.addresses]

    def resolved(self, host: str, addresses: tuple[str, ...]) -> None:
        """Take the supervisor's answer for a name: literal addresses; empty if the name cannot be resolved."""
        if self._answers.get(host) != addresses:  # a reload brings all answers again
            self._answers[host] = addresses
            self._update(host)

    def bar(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Replace the set of barred addresses: they are never dialled, even if no other address is left."""
        self.barred = frozenset(addresses)
        self._update()

    def _update(self, host: str | None = None) -> None:
        """Rebuild the routes to `host`, or all."""
        for route in self._routes:
            if host is None or host in route.hosts:
                route.update(self._answers)
        current = {id(target) for route in self._routes for target in route.current()}
        for key, target in list(self._targets.items()):
            if id(target) not in current and not target.active:
                del self._targets[key]

    def health(self, number: int, address: Address, up: bool) -> None:
        """Take the result of the supervisor's health check of an address of upstream `number`."""
        (self._down.discard if up else self._down.add)((number, address))
        target = self._targets.get((number, address))
        if target is not None:
            self.balance.set_up(target, up)

    def all_up(self) -> None:
        """Forget all results of health checks: some of them may have been missed."""
        self._down.clear()
        for target in self._targets.values():
            self.balance.set_up(target, True)

    def failing(self, hosts: Sequence[str], now: float) -> None:
        """Report these hosts, after a connection failed to connect to any of their addresses that it tried."""
        if now - self._reported_at >= REPORT_INTERVAL:
            self._reported_at = now
            self._report(list(hosts))

    def target(self, number: int, address: Address) -> Target:
        """The target for an address of upstream `number`; all callers get the same object."""
        target = self._targets.get((number, address))
        if target is None:
            addresses = self.sources.addresses
            target = self._targets[number, address] = Target(
                (address[0], address[1]),
                upstream=number,
                ejection=self._ejections.get(number),
                address=address,
                dials=[Dial(address, source, self._timeout) for source in addresses],
                cells=self.sources.cells(number),
                usable=self.sources.usable(address[0]),
                in_use=[0] * len(addresses),
                full_until=[0.0] * len(addresses),
            )
            self.balance.set_up(target, (number, address) not in self._down)
        return target


class Route:
    """The upstreams of one route, or those of a listener itself, and the targets that new connections try in turn."""

    def __init__(self, upstreams: Upstreams, wanted: Destinations) -> None:
        if not wanted:
            raise ValueError("a route needs an upstream")
        self._upstreams = upstreams
        self._balance = upstreams.balance
        self._wanted = wanted  # (number of the upstream, host, port)
        self._targets: list[Target] | None = None  # None: no name has been resolved yet
        self._waiting: list[Callable[[], None]] = []
        # Stands for the upstream in the access log if there is no address to dial.
        self.no_address = Target((wanted[0][1], wanted[0][2]), upstream=wanted[0][0])
        self.hosts = [host for _, host, _ in wanted]
        self.changed: Callable[[], None] | None = None  # called when `resolved` changes

    def targets(self, now: float) -> list[Target] | None:
        """The targets of a new connection, the first one last, to be popped; None: not known yet, see `wait`."""
        targets = self._targets
        if targets is None:
            return None
        if len(targets) == 1:
            return targets.copy()
        return self._balance.order(targets, now)[::-1]  # type: ignore[return-value]  # the same objects, in another order

    def current(self) -> list[Target]:
        """The targets of new connections, in no order."""
        return self._targets or []

    @property
    def resolved(self) -> bool:
        """Whether there is an address to dial."""
        return bool(self._targets)

    def wait(self, done: Callable[[], None]) -> None:
        """Call `done` once, as soon as the targets are known, or known to be none."""
        self._waiting.append(done)
        self._upstreams.add(self)  # for a connection that was accepted before a reload

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def update(self, answers: Mapping[str, tuple[str, ...]]) -> None:
        """Rebuild the targets from `answers`, the addresses of every name resolved so far."""
        found = self._found(self._wanted, answers)
        if found is None:
            return
        before, self._targets = self.resolved, found
        if self.changed is not None and before is not self.resolved:
            self.changed()
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    def _found(self, wanted: Destinations, answers: Mapping[str, tuple[str, ...]]) -> list[Target] | None:
        """The targets for the addresses of `wanted`; None if there is no answer yet."""
        found: list[Target] = []
        known = False
        for number, host, port in wanted:
            addresses: tuple[str, ...] | None = (host,) if literal(host, port) else answers.get(host)
            if addresses is None:
                continue
            known = True
            barred = self._upstreams.barred
            allowed = [
                address
                for text in addresses
                if (text, port) not in barred and (address := literal(text, port)) is not None
            ]
            self._upstreams.sources.spread_over(number, len(allowed))
            found += [target for address in allowed if (target := self._upstreams.target(number, address)) not in found]
        # Another name may still be looked up for the first time: one name's failure alone is no answer.
        if not known or (not found and any(not literal(h, p) and h not in answers for _, h, p in wanted)):
            return None
        return found

    def failing(self, now: float) -> None:
        """Report that a connection's dials to all of its targets failed, or that it reached dial.timeout."""
        self._upstreams.failing(self.hosts, now)


class BackedRoute(Route):
    """A route with a backup: upstreams that new connections try only while all of the route's own are down.

    Down are addresses by their health checks, and names without an address. If the backup is down as well, the route's
    own upstreams are tried.
    """

    def __init__(self, upstreams: Upstreams, wanted: Destinations, backup: Destinations) -> None:
        super().__init__(upstreams, wanted)
        self._backup = backup
        self._backup_targets: list[Target] = []
        self.hosts += [host for _, host, _ in backup]

    def targets(self, now: float) -> list[Target] | None:
        targets = self._targets
        if targets is None or any(target.up for target in targets):
            return super().targets(now)
        if any(target.up for target in self._backup_targets):
            return self._balance.order(self._backup_targets, now)[::-1]  # type: ignore[return-value]  # as above
        return super().targets(now)

    def current(self) -> list[Target]:
        return [*super().current(), *self._backup_targets]

    def update(self, answers: Mapping[str, tuple[str, ...]]) -> None:
        found = self._found(self._backup, answers)
        if found is not None:
            self._backup_targets = found
        super().update(answers)
