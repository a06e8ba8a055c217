"""From settings to what a start needs: descriptors, listening sockets, limits, the workers' orders.

Everything that can be wrong with a configuration on this machine is found here, before any process is started; each
mistake becomes one line that names the setting (`StartError`).
"""

from __future__ import annotations

import errno
import secrets
import socket
from dataclasses import dataclass, field

from relay import listener
from relay.address import format_hostport, parse_hostport
from relay.control import MAX_DESCRIPTORS, START_DESCRIPTORS
from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan, source_buckets
from relay.core.rates import Rate, RatePlan
from relay.cpus import usable_cpus
from relay.engines.choice import Choice, choose
from relay.engines.contract import TcpOptions, Timeouts
from relay.machine import bind_error, raise_descriptor_limit, source_ports, source_problems
from relay.outcome import OUTCOMES
from relay.rate_table import RateTable
from relay.settings import Listener, Settings
from relay.sniff import ProxyProtocol
from relay.spec import ListenerSpec, WorkerSpec
from relay.table import Table

RESERVED_DESCRIPTORS = 64  # of a worker: event loop, log, control, resolver; its listening sockets come on top
ADDRESS_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
EJECT_SECONDS = 10.0  # without checks: how long an address is left alone after failures
SEND_PROXY = {"off": 0, "v1": 1, "v2": 2}


class StartError(Exception):
    """The settings are right in themselves, but not on this machine. `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(slots=True)
class BoundListener:
    """A listener of the settings with its sockets: `sockets[worker]` has one per address."""

    name: str
    addresses: list[str]  # with the ports that the kernel chose
    upstreams: tuple[tuple[int, str, int], ...]
    max_connections: int
    sni: tuple[str, ...]
    proxy_protocol: ProxyProtocol
    send_proxy: int
    sockets: list[list[socket.socket]]


@dataclass(slots=True)
class Plan:
    """All that the supervisor needs to run."""

    settings: Settings
    workers: int
    listeners: list[BoundListener]
    upstreams: tuple[str, ...]
    limits: LimitPlan
    layout: Layout
    table: Table
    rates: RateTable
    descriptors: int
    source_ports: int  # local ports for each pair of source and upstream address
    source_key: str
    engine: str
    engine_reason: str
    notes: list[str] = field(default_factory=list)  # for the start log: what an operator should know

    def worker_spec(self, index: int) -> WorkerSpec:
        settings = self.settings
        return WorkerSpec(
            index=index,
            engine=self.engine,
            listeners=tuple(
                ListenerSpec(
                    bound.name,
                    bound.upstreams,
                    len(bound.sockets[index]),
                    bound.sni,
                    bound.proxy_protocol,
                    bound.send_proxy,
                )
                for bound in self.listeners
            ),
            upstreams=self.upstreams,
            limits=self.limits,
            rates=self.rates.plan,
            source_key=self.source_key,
            source_prefix_v4=settings.limits.source_prefix_v4,
            source_prefix_v6=settings.limits.source_prefix_v6,
            access_allow=settings.access.allow,
            access_deny=settings.access.deny,
            client_hello_timeout=settings.timeouts.client_hello,
            connect_timeout=settings.dial.connect_timeout,
            source_addresses=settings.dial.source_addresses,
            source_ports=self.source_ports,
            eject_after=settings.health_check.fall,
            eject_seconds=settings.health_check.interval or EJECT_SECONDS,
            timeouts=Timeouts(settings.timeouts.idle, settings.timeouts.half_close),
            tcp=tcp_options(settings),
            held_bytes=settings.limits.held_bytes,
            access_log=settings.log.access,
            log_format=settings.log.format,
            debug=settings.log.level == "debug",
        )

    def worker_sockets(self, index: int) -> list[socket.socket]:
        """The listening sockets of one worker, in the order of `worker_spec(index).listeners`."""
        return [sock for bound in self.listeners for sock in bound.sockets[index]]

    def close_sockets(self) -> None:
        """Close this process's copies of the listening sockets."""
        for bound in self.listeners:
            for row in bound.sockets:
                for sock in row:
                    sock.close()


def prepare(settings: Settings) -> Plan:
    """Raise the descriptor limit, bind every listener, make the table. Raises StartError."""
    workers = settings.workers or usable_cpus()
    notes: list[str] = []
    # First of all: every worker's listening sockets are this process's as well.
    descriptors = raise_descriptor_limit()
    tcp = tcp_options(settings)
    numbers: dict[str, int] = {}
    problems: list[str] = []
    # Before anything is bound: from then on clients come, and would wait for the self-test.
    engine = choose(settings.engine, workers)
    if settings.engine == "ring" and engine.problem:
        problems.append(ring_problem(engine))
    bound: list[BoundListener] = []
    for item in settings.listeners:
        addresses, sockets = _bind(item, workers, tcp, problems, notes)
        upstreams = tuple(_number(numbers, text) for text in item.upstream)
        bound.append(
            BoundListener(
                item.name,
                addresses,
                upstreams,
                item.max_connections,
                item.sni,
                item.proxy_protocol,
                SEND_PROXY[item.send_proxy_protocol],
                sockets,
            )
        )
    own = max((sum(len(item.sockets[0]) for item in bound if item.sockets)), 1)
    if own > MAX_DESCRIPTORS - START_DESCRIPTORS:
        most = MAX_DESCRIPTORS - START_DESCRIPTORS
        problems.append(f"listeners: {own} addresses to listen on; at most {most}")
    problems += source_problems(settings.dial.source_addresses)
    capacity = (descriptors - RESERVED_DESCRIPTORS - own) // 2
    if capacity < 1:
        problems.append(
            f"limits: the descriptor limit of {descriptors} carries no connection; raise LimitNOFILE or `ulimit -n`"
        )
    if problems:
        for one in bound:
            for row in one.sockets:
                for sock in row:
                    sock.close()
        raise StartError(problems)
    wanted = settings.limits.max_connections
    if wanted > capacity * workers:
        notes.append(
            f"limits.max_connections is {wanted}, but {descriptors} descriptors a worker carry "
            f"{capacity * workers} connections in all: raise LimitNOFILE or `ulimit -n`"
        )
    per_source = settings.limits.max_connections_per_source
    limits = LimitPlan(
        workers=workers,
        instance=min(wanted, capacity * workers) if wanted else capacity * workers,
        capacity=capacity,
        listeners=tuple(item.max_connections for item in bound),
        per_source=per_source,
        source_buckets=source_buckets(min(capacity, wanted or capacity)) if per_source else 0,
    )
    layout = Layout(len(bound), len(numbers), len(OUTCOMES), len(settings.dial.source_addresses) + 1)
    return Plan(
        settings=settings,
        workers=workers,
        listeners=bound,
        upstreams=tuple(numbers),
        limits=limits,
        layout=layout,
        table=Table.create(limits, layout),
        rates=RateTable.create(rate_plan(settings)),
        descriptors=descriptors,
        source_ports=source_ports(),
        source_key=secrets.token_hex(16),
        engine=engine.name,
        engine_reason=engine.reason,
        notes=notes,
    )


def ring_problem(engine: Choice) -> str:
    """The line for who asked for the ring where it is not to be had."""
    return f'engine: "ring" does not work here: {engine.problem}; "auto" or "stream" does'


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
    )


def tcp_options(settings: Settings) -> TcpOptions:
    """The socket options of both sides, as the settings want them."""
    tcp = settings.tcp
    return TcpOptions(tcp.keepalive_idle, tcp.keepalive_interval, tcp.keepalive_count, tcp.user_timeout)


def nameservers(settings: Settings) -> tuple[tuple[str, int], ...]:
    """The configured name servers as (address, port)."""
    return tuple(parse_hostport(text, allow_name=False) for text in settings.dns.nameservers)


def _number(numbers: dict[str, int], upstream: str) -> tuple[int, str, int]:
    """The upstream with its number: the same host and port in two listeners is one upstream."""
    host, port = parse_hostport(upstream, allow_name=True)
    return numbers.setdefault(format_hostport(host, port), len(numbers)), host, port


def _bind(
    item: Listener, workers: int, tcp: TcpOptions, problems: list[str], notes: list[str]
) -> tuple[list[str], list[list[socket.socket]]]:
    """One socket per address and worker; what cannot be bound becomes a problem, or a note if others are left."""
    addresses: list[str] = []
    rows: list[list[socket.socket]] = [[] for _ in range(workers)]
    for text in item.bind:
        host, port = parse_hostport(text, allow_name=False)
        try:
            port = listener.claim_port(host, port)
            for row in rows:
                row.append(listener.bind_listener(host, port, tcp))
        except OSError as error:
            # A machine without IPv6 is no mistake as long as the listener has another address.
            if ":" in host and error.errno in ADDRESS_MISSING and len(item.bind) > 1:
                notes.append(f"listeners.{item.name}.bind: {text}: no IPv6 on this machine; not listening there")
                continue
            problems.append(f"listeners.{item.name}.bind: {text}: {bind_error(error, port)}")
            continue
        addresses.append(format_hostport(host, port))
    if not addresses and not problems:
        problems.append(f"listeners.{item.name}.bind: none of its addresses can be had on this machine")
    return addresses, rows
