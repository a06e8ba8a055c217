"""The state of one run of the relay: its settings, listeners with their sockets, limits and shared memory.

`prepare` makes it, a reload changes it, and all of the supervisor reads it. Each listener and upstream has a number,
the index of its counters, which it keeps as long as the process lives, even if a reload removes it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from relay.address import is_complete, parse_hostport
from relay.core.counters import Layout, Used
from relay.core.customers import SLOTS
from relay.core.limit_table import LimitPlan, source_buckets
from relay.core.rates import Rate, RatePlan
from relay.engines.acceptor import LINGER, answer_again, answer_no_more
from relay.engines.contract import TcpOptions, Timeouts
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import (
    Destinations,
    ListenerAccess,
    ListenerSpec,
    ListenerTimeouts,
    ProxyProtocol,
    RouteSpec,
    WorkerSpec,
)
from relay.own_addresses import Endpoint, endpoint, written
from relay.settings.inherited import access, timeouts, upstream_checks
from relay.settings.listeners import Listener
from relay.settings.model import Settings
from relay.supervisor.customers import CustomerTables, PreparedCustomers

EJECT_SECONDS = 10.0  # without health checks: seconds that an address is not dialled after failures
SPARE_LISTENERS = 16  # that reloads may add to those of the start, over the life of the process
# Seconds from `unlisten` until this process closes its copies of the sockets: as long as a worker takes to close its
# own, including its tick. Until then the same sockets can listen again.
CLOSE_DELAY = LINGER + 0.6


class StartError(Exception):
    """The settings are valid but cannot be put into effect on this machine. `problems` has one line per mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(slots=True)
class Binding:
    """One address that a listener listens on, with a socket for each worker.

    `inherited` is the service manager's socket, if it is one: all workers share it, and it is never closed.
    """

    asked: str  # `listening.key` of the address in the settings
    address: str  # host:port, with the port that the kernel chose for port 0
    sockets: list[socket.socket]
    inherited: socket.socket | None = None

    def close(self) -> None:
        """Close this process's copies of the sockets."""
        if self.inherited is None:
            for sock in self.sockets:
                sock.close()

    def rebind(self, sockets: list[socket.socket]) -> None:
        """Use these sockets, bound to the same address, in place of closed ones."""
        self.sockets = sockets


@dataclass(slots=True)
class Numbers:
    """The numbers of everything that has counters, by name, in order; what a reload has removed is included."""

    listeners: dict[str, int] = field(default_factory=dict)  # by name
    upstreams: dict[str, int] = field(default_factory=dict)  # by host:port
    routes: dict[tuple[str, str], int] = field(default_factory=dict)  # by the names of listener and route
    buckets: dict[str, int] = field(default_factory=dict)  # of rates, by the name of their routes

    def copy(self) -> Numbers:
        """The same numbers, for a reload to add to."""
        return Numbers(dict(self.listeners), dict(self.upstreams), dict(self.routes), dict(self.buckets))


@dataclass(slots=True)
class BoundListener:
    """A listener of the settings with its sockets."""

    number: int
    name: str
    bindings: list[Binding]
    upstreams: Destinations  # its own
    max_connections: int
    sni: tuple[str, ...]
    proxy_protocol: ProxyProtocol
    send_proxy: int
    routes: tuple[RouteSpec, ...]

    @property
    def addresses(self) -> list[str]:
        return [binding.address for binding in self.bindings]


@dataclass(slots=True)
class Instance:
    """Settings and resources of a run. Only its own methods change it, but for `notes`, to which a start adds."""

    settings: Settings
    settings_hash: str  # `settings.fingerprint`
    workers: int
    listeners: list[BoundListener]
    numbers: Numbers
    limits: LimitPlan
    layout: Layout
    table: Table
    rates: RateTable
    descriptors: int  # RLIMIT_NOFILE of each process
    source_ports: int  # local ports that may be in use for each pair of source and upstream address
    source_key: str
    engine: str
    engine_reason: str
    engine_word: str  # `engine_reason` as one word, for metrics
    inherited: Mapping[str, Binding]  # the service manager's sockets by `listening.key`; a socket may have two keys
    watchdog: float  # the service manager's watchdog timeout in seconds; 0: off
    customers: CustomerTables
    notes: list[str] = field(default_factory=list)  # warnings for the log
    # Bindings that no longer accept, by `Binding.asked`, each with the timer that closes it. None is inherited.
    unlistened: dict[str, tuple[Binding, asyncio.TimerHandle]] = field(default_factory=dict)

    @property
    def upstreams(self) -> list[str]:
        """host:port by number; removed upstreams included."""
        return list(self.numbers.upstreams)

    @property
    def used(self) -> Used:
        """How many numbers have counters in the shared table."""
        return Used(len(self.numbers.listeners), len(self.numbers.upstreams), len(self.numbers.routes))

    @property
    def current_upstreams(self) -> list[int]:
        """The numbers of the upstreams that a listener or a route has now."""
        found = {number for bound in self.listeners for number, _, _ in bound.upstreams}
        for bound in self.listeners:
            for route in bound.routes:
                found.update(number for number, _, _ in (*route.upstreams, *route.backup))
        return sorted(found)

    @property
    def optional_upstreams(self) -> frozenset[int]:
        """The numbers of the upstreams that optional routes have and nothing else."""
        optional: set[int] = set()
        needed = {number for bound in self.listeners for number, _, _ in bound.upstreams}
        for bound in self.listeners:
            for route in bound.routes:
                numbers = [number for number, _, _ in (*route.upstreams, *route.backup)]
                (optional if route.optional else needed).update(numbers)
        return frozenset(optional - needed)

    def bindings(self) -> list[Binding]:
        """The bindings of all listeners, in their order."""
        return [binding for bound in self.listeners for binding in bound.bindings]

    def endpoints(self) -> list[Endpoint]:
        """The endpoints of all listeners, which a drain does not change."""
        return endpoints(self.listeners)

    def worker_spec(self, index: int) -> WorkerSpec:
        """The settings of worker number `index`."""
        settings = self.settings
        items = {item.name: item for item in settings.listeners}
        return WorkerSpec(
            index=index,
            engine=self.engine,
            slots=self.layout.all,
            listeners=tuple(
                ListenerSpec(
                    bound.number,
                    bound.name,
                    bound.upstreams,
                    tuple((binding.address, binding.inherited is not None) for binding in bound.bindings),
                    bound.sni,
                    bound.proxy_protocol,
                    bound.send_proxy,
                    ListenerTimeouts(**timeouts(settings.timeouts, items[bound.name]).model_dump()),
                    bound.routes,
                    _access(settings, items[bound.name]),
                    items[bound.name].trusted_proxies,
                )
                for bound in self.listeners
            ),
            upstreams=tuple(self.upstreams),
            limits=self.limits,
            rates=self.rates.plan,
            source_key=self.source_key,
            source_prefix_v4=settings.limits.source_prefix_v4,
            source_prefix_v6=settings.limits.source_prefix_v6,
            access_allow=settings.access.allow,
            access_deny=settings.access.deny,
            connect_timeout=settings.dial.connect_timeout,
            dial_timeout=settings.dial.timeout,
            source_addresses=settings.dial.source_addresses,
            source_ports=self.source_ports,
            eject_after=settings.health_check.fall,
            eject_seconds=settings.health_check.interval or EJECT_SECONDS,
            ejections=self._ejections(),
            timeouts=Timeouts(settings.timeouts.idle, settings.timeouts.half_close),
            drain_window=settings.drain.window,
            tcp=tcp_options(settings),
            held_bytes=settings.limits.held_bytes,
            access_log=settings.log.access,
            log_format=settings.log.format,
            debug=settings.log.level == "debug",
            customers=self.customers.number,
            only_customers=bool(settings.customers) and not settings.access.allow,
        )

    def worker_tables(self) -> list[int]:
        """The descriptor that comes with a worker's spec: of the customers' table, if there is one."""
        return [self.customers.descriptor] if self.customers.number else []

    def _ejections(self) -> tuple[tuple[int, int, float], ...]:
        """The failed dials in a row, and the seconds without dials, of upstreams whose check is not the instance's."""
        instance = self.settings.health_check
        return tuple(
            (self.numbers.upstreams[upstream], check.settings.fall, check.settings.interval or EJECT_SECONDS)
            for upstream, check in upstream_checks(instance, self.settings.listeners).items()
            if (check.settings.fall, check.settings.interval) != (instance.fall, instance.interval)
        )

    def worker_sockets(self, index: int, addresses: list[str] | None = None) -> list[socket.socket]:
        """One worker's listening sockets in the order of the bindings; with `addresses`, only those bound there."""
        return [
            binding.sockets[index] for binding in self.bindings() if addresses is None or binding.address in addresses
        ]

    def reconfigure(
        self,
        settings: Settings,
        settings_hash: str,
        listeners: list[BoundListener],
        numbers: Numbers,
        limits: LimitPlan,
        customers: PreparedCustomers,
        notes: list[str],
    ) -> None:
        """Replace what a reload may change; the table of rates follows the settings."""
        self.settings, self.settings_hash = settings, settings_hash
        self.listeners, self.numbers = listeners, numbers
        self.limits = limits
        self.rates.plan = rate_plan(settings, numbers)
        self.customers.switch(customers)
        self.notes = notes

    def unlisten(self, bindings: Iterable[Binding]) -> None:
        """Accept no new connections there; close this process's copies of the sockets after CLOSE_DELAY seconds."""
        loop = asyncio.get_running_loop()
        for binding in bindings:
            if binding.inherited is not None or binding.asked in self.unlistened:
                continue
            if all(answer_no_more(sock) for sock in binding.sockets):
                self.unlistened[binding.asked] = binding, loop.call_later(CLOSE_DELAY, self._close, binding)
            else:
                binding.close()  # else the kernel would complete handshakes for connections that nobody accepts

    def listen_again(self, binding: Binding) -> bool:
        """Accept connections there again, if `unlisten` has not closed the sockets yet; False if it has.

        New sockets beside the old ones would not do: the kernel would give the old ones their share of the connections
        (SO_REUSEPORT), which nobody would accept.
        """
        _, timer = self.unlistened.pop(binding.asked, (None, None))
        if timer is None:
            return False
        timer.cancel()
        for sock in binding.sockets:
            answer_again(sock)
        return True

    def _close(self, binding: Binding) -> None:
        del self.unlistened[binding.asked]
        binding.close()

    def close_sockets(self) -> None:
        """Close this process's copies of the listening sockets."""
        for binding, timer in self.unlistened.values():
            timer.cancel()
            binding.close()
        self.unlistened.clear()
        for binding in self.bindings():
            binding.close()


def _access(settings: Settings, item: Listener) -> ListenerAccess | None:
    """The access list of a listener; None if it is the instance's."""
    own = access(settings.access, item)
    return ListenerAccess(own.allow, own.deny) if own != settings.access else None


def endpoints(listeners: Iterable[BoundListener]) -> list[Endpoint]:
    """The endpoints of these listeners; an inherited socket at an IPv6 wildcard may take IPv4 as well."""
    return [
        endpoint(binding.inherited) if binding.inherited is not None else written(binding.address)
        for bound in listeners
        for binding in bound.bindings
    ]


def limit_plan(settings: Settings, plan: LimitPlan | None, workers: int, capacity: int, limits: list[int]) -> LimitPlan:
    """The limits of these settings: `limits` are the listeners' by number.

    `plan` is the one in effect, if any: the size of the sources' table cannot change.
    """
    wanted, total = settings.limits.max_connections, capacity * workers
    return LimitPlan(
        workers=workers,
        instance=min(wanted or total, total),
        capacity=capacity,
        listeners=tuple(limits),
        per_source=settings.limits.max_connections_per_source,
        # Made even where the limit is off, for a reload may turn it on; memory is used only as sources appear.
        source_buckets=plan.source_buckets if plan is not None else source_buckets(capacity),
        sources_counted=bool(settings.limits.max_connections_per_source) or (plan is not None and plan.sources_counted),
        customers=SLOTS,  # a reload may add them
    )


def rate_plan(settings: Settings, numbers: Numbers) -> RatePlan:
    """The token buckets of the settings.

    The accept rate has a burst of one second's worth, for clients do not come evenly. The rates of dials have a tenth
    of that, for early dials can wait in the dial queue.
    """
    limits, dial = settings.limits, settings.dial
    rates = {route.name: route.rate for item in settings.listeners for route in item.routes}
    return RatePlan(
        accept=Rate(limits.accept_rate, limits.accept_rate),
        source=Rate(limits.connect_rate_per_source, limits.connect_burst_per_source),
        dial=_dial_rate(dial.rate),
        routes=tuple(_dial_rate(rates.get(name, 0.0)) for name in numbers.buckets),
        queue=dial.queue,
        queue_seconds=dial.queue_timeout,
        may_limit_sources=True,
        customers=SLOTS,
    )


def _dial_rate(per_second: float) -> Rate:
    return Rate(per_second, max(1.0, per_second / 10))


def tcp_options(settings: Settings) -> TcpOptions:
    """The socket options for clients' and upstreams' connections."""
    tcp = settings.tcp
    return TcpOptions(tcp.keepalive_idle, tcp.keepalive_interval, tcp.keepalive_count, tcp.user_timeout)


def complete_names(settings: Settings) -> frozenset[str]:
    """The upstream names configured with a trailing dot: no search list applies to them."""
    texts = [text for item in settings.listeners for text in item.destinations if is_complete(text)]
    return frozenset(parse_hostport(text, allow_name=True)[0] for text in texts)


def nameservers(settings: Settings) -> tuple[tuple[str, int], ...]:
    """The configured name servers as (address, port)."""
    return tuple(parse_hostport(text, allow_name=False) for text in settings.dns.nameservers)
