"""What one run of the relay is made of: its settings, listeners with their sockets, shared memory, numbers of things.

Made by `prepare`, changed by `reload`, and read by all of the supervisor. Listeners and upstreams have a number each,
which is where their counters stand, and keep it as long as the process lives, whatever becomes of the others.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from relay.address import is_complete, parse_hostport
from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan, source_buckets
from relay.core.rates import Rate, RatePlan
from relay.engines.acceptor import LINGER, answer_again, answer_no_more
from relay.engines.contract import TcpOptions, Timeouts
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import ListenerSpec, ProxyProtocol, WorkerSpec
from relay.own_addresses import Endpoint, endpoint, written
from relay.settings.model import Settings

EJECT_SECONDS = 10.0  # without checks: how long an address is left alone after failures
# What a reload may add to the listeners and upstreams of the start, over the life of the process.
SPARE_LISTENERS, SPARE_UPSTREAMS = 16, 48


# Seconds that sockets which the workers leave stay open here, so that an address can be taken back as if it had never
# been left: as long as a worker needs to close its own, with its tick.
LEFT = LINGER + 0.6


class StartError(Exception):
    """The settings are right in themselves, but not on this machine. `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(slots=True)
class Binding:
    """One address that a listener listens on, with a socket for each worker.

    `inherited`: the service manager's socket, which is then every worker's, and is never closed.
    """

    asked: str  # `binding.key` of what the settings have
    address: str  # with the port that the kernel chose
    sockets: list[socket.socket]
    inherited: socket.socket | None = None

    def close(self) -> None:
        """Close this process's copies."""
        if self.inherited is None:
            for sock in self.sockets:
                sock.close()


@dataclass(slots=True)
class BoundListener:
    """A listener of the settings with its sockets."""

    number: int
    name: str
    bindings: list[Binding]
    upstreams: tuple[tuple[int, str, int], ...]  # (number, host, port)
    max_connections: int
    sni: tuple[str, ...]
    proxy_protocol: ProxyProtocol
    send_proxy: int

    @property
    def addresses(self) -> list[str]:
        return [binding.address for binding in self.bindings]


@dataclass(slots=True)
class Instance:
    """All that the supervisor needs to run."""

    settings: Settings
    workers: int
    listeners: list[BoundListener]
    listener_numbers: dict[str, int]  # those of former listeners as well
    upstream_numbers: dict[str, int]  # host:port, the same
    limits: LimitPlan
    layout: Layout
    table: Table
    rates: RateTable
    descriptors: int
    source_ports: int  # local ports that may be in use for each pair of source and upstream address
    source_key: str
    engine: str
    engine_reason: str
    engine_word: str  # the same in a word, for metrics
    inherited: Mapping[str, Binding]  # the service manager's sockets, by `binding.key`; one may have two of them
    notes: list[str] = field(default_factory=list)  # for the log: what an operator should know
    watchdog: float = 0.0  # seconds that the service manager bears with silence, 0: for ever
    # What the workers leave, by `Binding.asked`, and when it is closed here. No service manager's.
    left: dict[str, tuple[Binding, asyncio.TimerHandle]] = field(default_factory=dict)

    @property
    def upstreams(self) -> list[str]:
        """host:port by number, former ones included."""
        return list(self.upstream_numbers)

    @property
    def dialled(self) -> list[int]:
        """The numbers of the upstreams that listeners have now."""
        return sorted({number for bound in self.listeners for number, _, _ in bound.upstreams})

    def bindings(self) -> list[Binding]:
        """All addresses, in the listeners' order."""
        return [binding for bound in self.listeners for binding in bound.bindings]

    def endpoints(self) -> list[Endpoint]:
        """Where the listeners listen, or will again after a drain."""
        return endpoints(self.listeners)

    def worker_spec(self, index: int) -> WorkerSpec:
        """What worker number `index` has to know."""
        settings = self.settings
        return WorkerSpec(
            index=index,
            engine=self.engine,
            slots=(self.layout.listeners, self.layout.upstreams),
            listeners=tuple(
                ListenerSpec(
                    bound.number,
                    bound.name,
                    bound.upstreams,
                    tuple((binding.address, binding.inherited is not None) for binding in bound.bindings),
                    bound.sni,
                    bound.proxy_protocol,
                    bound.send_proxy,
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
            client_hello_timeout=settings.timeouts.client_hello,
            connect_timeout=settings.dial.connect_timeout,
            dial_timeout=settings.dial.timeout,
            source_addresses=settings.dial.source_addresses,
            source_ports=self.source_ports,
            eject_after=settings.health_check.fall,
            eject_seconds=settings.health_check.interval or EJECT_SECONDS,
            timeouts=Timeouts(settings.timeouts.idle, settings.timeouts.half_close),
            max_age=settings.timeouts.max_age,
            max_age_jitter=settings.timeouts.max_age_jitter,
            drain_window=settings.drain.window,
            tcp=tcp_options(settings),
            held_bytes=settings.limits.held_bytes,
            access_log=settings.log.access,
            log_format=settings.log.format,
            debug=settings.log.level == "debug",
        )

    def worker_sockets(self, index: int, addresses: list[str] | None = None) -> list[socket.socket]:
        """One worker's listening sockets, in the order of the bindings; those at `addresses` only."""
        return [
            binding.sockets[index] for binding in self.bindings() if addresses is None or binding.address in addresses
        ]

    def leave(self, bindings: Iterable[Binding]) -> None:
        """Let nobody new in there; close this process's copies in LEFT seconds, unless they are taken back."""
        loop = asyncio.get_running_loop()
        for binding in bindings:
            if binding.inherited is not None or binding.asked in self.left:
                continue
            if all(answer_no_more(sock) for sock in binding.sockets):
                self.left[binding.asked] = binding, loop.call_later(LEFT, self._close_left, binding)
            else:
                binding.close()  # else clients would wait there for nobody

    def take_back(self, binding: Binding) -> bool:
        """Let clients in there again; False if it was closed.

        New sockets instead would not do: the old ones would be given their part of those who connect (SO_REUSEPORT),
        and not answer them.
        """
        _, timer = self.left.pop(binding.asked, (None, None))
        if timer is None:
            return False
        timer.cancel()
        for sock in binding.sockets:
            answer_again(sock)
        return True

    def _close_left(self, binding: Binding) -> None:
        del self.left[binding.asked]
        binding.close()

    def close_sockets(self) -> None:
        """Close this process's copies of the listening sockets."""
        for binding, timer in self.left.values():
            timer.cancel()
            binding.close()
        self.left.clear()
        for binding in self.bindings():
            binding.close()


def endpoints(listeners: Iterable[BoundListener]) -> list[Endpoint]:
    """Where the listeners listen; the service manager's sockets may take IPv4 at an IPv6 wildcard."""
    return [
        endpoint(binding.inherited) if binding.inherited is not None else written(binding.address)
        for bound in listeners
        for binding in bound.bindings
    ]


def limit_plan(settings: Settings, plan: LimitPlan | None, workers: int, capacity: int, limits: list[int]) -> LimitPlan:
    """What is limited; `limits` are the listeners' by number. The sources' table stays as large as that of `plan`."""
    wanted, total = settings.limits.max_connections, capacity * workers
    return LimitPlan(
        workers=workers,
        instance=min(wanted or total, total),
        capacity=capacity,
        listeners=tuple(limits),
        per_source=settings.limits.max_connections_per_source,
        # There from the beginning, for a reload may turn it on; it takes memory only as sources come.
        source_buckets=plan.source_buckets if plan is not None else source_buckets(capacity),
        sources_counted=bool(settings.limits.max_connections_per_source) or (plan is not None and plan.sources_counted),
    )


def rate_plan(settings: Settings) -> RatePlan:
    """The rates of the settings.

    The instance's allows one second's worth at once, for clients do not come evenly; that of dials less, for those that
    come too early can wait.
    """
    limits, dial = settings.limits, settings.dial
    return RatePlan(
        accept=Rate(limits.accept_rate, limits.accept_rate),
        source=Rate(limits.connect_rate_per_source, limits.connect_burst_per_source),
        dial=Rate(dial.rate, max(1.0, dial.rate / 10)),
        queue=dial.queue,
        queue_seconds=dial.queue_timeout,
        may_limit_sources=True,
    )


def tcp_options(settings: Settings) -> TcpOptions:
    """The socket options of both sides, as the settings want them."""
    tcp = settings.tcp
    return TcpOptions(tcp.keepalive_idle, tcp.keepalive_interval, tcp.keepalive_count, tcp.user_timeout)


def complete_names(settings: Settings) -> frozenset[str]:
    """The upstreams' names that were written with a dot at the end: no search list applies to them."""
    texts = [text for item in settings.listeners for text in item.upstream if is_complete(text)]
    return frozenset(parse_hostport(text, allow_name=True)[0] for text in texts)


def nameservers(settings: Settings) -> tuple[tuple[str, int], ...]:
    """The configured name servers as (address, port)."""
    return tuple(parse_hostport(text, allow_name=False) for text in settings.dns.nameservers)
