"""A worker's knowledge of the upstreams: their addresses, as the supervisor tells them, and who is fit to be dialled.

The supervisor resolves names and checks addresses (`names`, `health_check`), once for all workers. What it finds takes
effect for new connections; established ones stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from relay.address import Address, literal
from relay.core.balance import Balance
from relay.engines.contract import Dial
from relay.worker.connection.source_ports import SourcePorts
from relay.worker.connection.target import Target

FIRST_ASK = -60.0  # seconds before the beginning of time
ASK = 1.0  # seconds from one report of failing upstreams to the next


class Upstreams:
    """All upstreams of one worker.

    `timeout` are the seconds that each dial has. `report(hosts)` tells the supervisor that none of these hosts'
    addresses could be connected to.
    """

    def __init__(
        self, balance: Balance, sources: SourcePorts, timeout: float, report: Callable[[list[str]], None]
    ) -> None:
        self.balance = balance
        self.sources = sources
        self._timeout = timeout
        self._report = report
        self._asked = FIRST_ASK
        self._targets: dict[tuple[int, Address], Target] = {}
        self._down: set[Address] = set()
        self._routes: list[Route] = []
        self._answers: dict[str, tuple[str, ...]] = {}
        self.barred: frozenset[tuple[str, int]] = frozenset()

    def route(self, upstreams: Sequence[tuple[int, str, int]]) -> Route:
        """The way of one listener's connections; `upstreams` are (number, host, port), at least one."""
        route = Route(self, upstreams)
        self.add(route)
        return route

    def add(self, route: Route) -> None:
        """Tell it of every answer."""
        if route not in self._routes:
            self._routes.append(route)
            route.update(self._answers)

    def configure(self, timeout: float) -> None:
        """Before other routes are made: those that there are go with the connections that wait at them.

        `timeout` are the seconds that each dial has from now on.
        """
        self._routes = [route for route in self._routes if route.waited_for]
        self._timeout = timeout
        for target in self._targets.values():
            assert target.address is not None
            target.dials[:] = [Dial(target.address, source, timeout) for source in self.sources.addresses]

    def resolved(self, host: str, addresses: tuple[str, ...]) -> None:
        """The supervisor's answer: literal addresses, none if the name cannot be resolved."""
        self._answers[host] = addresses
        self._update()

    def bar(self, addresses: Iterable[tuple[str, int]]) -> None:
        """These addresses, and no others, are never dialled from now on, not even where nothing else is left."""
        self.barred = frozenset(addresses)
        self._update()

    def _update(self) -> None:
        for route in self._routes:
            route.update(self._answers)
        current = {id(target) for route in self._routes for target in route.current()}
        for key, target in list(self._targets.items()):
            if id(target) not in current and not target.active:
                del self._targets[key]

    def health(self, address: Address, up: bool) -> None:
        """The supervisor's checks found the address up or down."""
        (self._down.discard if up else self._down.add)(address)
        for (_, one), target in self._targets.items():
            if one == address:
                self.balance.set_up(target, up)

    def all_up(self) -> None:
        """What the checks have found so far is void: some of it may have been missed."""
        self._down.clear()
        for target in self._targets.values():
            self.balance.set_up(target, True)

    def failing(self, hosts: Sequence[str], now: float) -> None:
        """A connection could connect to none of these hosts' addresses that it tried."""
        if now - self._asked >= ASK:
            self._asked = now
            self._report(list(hosts))

    def target(self, number: int, address: Address) -> Target:
        """The target for that address of upstream `number`: the same for all that ask."""
        target = self._targets.get((number, address))
        if target is None:
            addresses = self.sources.addresses
            target = self._targets[number, address] = Target(
                (address[0], address[1]),
                upstream=number,
                address=address,
                dials=[Dial(address, source, self._timeout) for source in addresses],
                cells=self.sources.cells(number),
                usable=self.sources.usable(address[0]),
                in_use=[0] * len(addresses),
                full_until=[0.0] * len(addresses),
            )
            self.balance.set_up(target, address not in self._down)
        return target


class Route:
    """The upstreams of one listener, and the targets that a new connection tries in turn."""

    def __init__(self, upstreams: Upstreams, wanted: Sequence[tuple[int, str, int]]) -> None:
        if not wanted:
            raise ValueError("a route needs an upstream")
        self._upstreams = upstreams
        self._balance = upstreams.balance
        self._wanted = wanted
        self._targets: list[Target] | None = None  # None: nothing is known yet
        self._waiting: list[Callable[[], None]] = []
        # For the log, where there is nothing to dial.
        self.unknown = Target((wanted[0][1], wanted[0][2]), upstream=wanted[0][0])
        self.hosts = [host for _, host, _ in wanted]

    def targets(self, now: float) -> list[Target] | None:
        """What a new connection tries, the first one last (to be popped); None: not known yet, see `wait`."""
        targets = self._targets
        if targets is None:
            return None
        if len(targets) == 1:
            return targets.copy()
        return self._balance.order(targets, now)[::-1]  # type: ignore[return-value]  # what it was given

    def current(self) -> list[Target]:
        """All targets of new connections."""
        return self._targets or []

    def wait(self, done: Callable[[], None]) -> None:
        """Call `done` once, when targets are known, or it is known that there are none."""
        self._waiting.append(done)
        self._upstreams.add(self)  # a connection from before a reload

    @property
    def waited_for(self) -> bool:
        return bool(self._waiting)

    def update(self, answers: dict[str, tuple[str, ...]]) -> None:
        """Take the addresses that are known now."""
        found: list[Target] = []
        known = False
        for number, host, port in self._wanted:
            addresses: tuple[str, ...] | None = (host,) if literal(host, port) else answers.get(host)
            if addresses is None:
                continue
            known = True
            barred = self._upstreams.barred
            those = [
                address
                for text in addresses
                if (text, port) not in barred and (address := literal(text, port)) is not None
            ]
            self._upstreams.sources.spread_over(number, len(those))
            found += [target for address in those if (target := self._upstreams.target(number, address)) not in found]
        # While one name is looked up for the first time another one's failure is no answer yet.
        if not known or (not found and any(not literal(h, p) and h not in answers for _, h, p in self._wanted)):
            return
        self._targets = found
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    def failing(self, now: float) -> None:
        """A connection has tried all of its targets in vain, or for the whole of dial.timeout."""
        self._upstreams.failing(self.hosts, now)
