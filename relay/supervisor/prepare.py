"""Makes an `Instance` from the settings: descriptor limit, listening sockets, limits and shared memory.

Every mistake that shows only on this machine is found here, before any process is started; each becomes one line that
names the setting (`StartError`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Sequence

from relay.address import format_hostport, literal, parse_hostport
from relay.core.counters import ROUTE_SLOTS, UPSTREAM_SLOTS, Layout
from relay.core.limit_table import LimitPlan
from relay.engines.choice import Choice, choose
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import NO_BUCKET, Destinations, RouteSpec
from relay.outcome import OUTCOMES, REFUSALS
from relay.own_addresses import OWN, Endpoint, is_own, written
from relay.settings.fingerprint import fingerprint
from relay.settings.inherited import SEND_PROXY, upstream_checks
from relay.settings.listeners import Route
from relay.settings.model import Settings
from relay.settings.warnings import settings_warnings
from relay.supervisor.cpus import usable_cpus
from relay.supervisor.customers import CustomerTables
from relay.supervisor.host import most_in_use, raise_descriptor_limit, source_ports, source_problems
from relay.supervisor.instance import (
    SPARE_LISTENERS,
    BoundListener,
    Instance,
    Numbers,
    StartError,
    endpoints,
    limit_plan,
    rate_plan,
    tcp_options,
)
from relay.supervisor.listening import ExistingBindings, bind
from relay.supervisor.tls_check import trust_problem

RESERVED_DESCRIPTORS = 64  # of a process: event loop, log, control, resolver; not its listening sockets
PER_WORKER = 2  # further descriptors of the supervisor for each worker: its end of the channel, and the pidfd
REPLACED = 15.0  # seconds within which a hung worker has certainly been replaced by one that answers


def prepare(
    settings: Settings,
    inherited: ExistingBindings | None = None,
    *,
    ours: Collection[str] = (),
    listen: bool = True,
    watchdog: float = 0.0,
) -> Instance:
    """Raise the descriptor limit, bind every listener, make the shared memory. Raises StartError.

    `inherited` are listening sockets from the service manager; `watchdog` is its timeout in seconds, 0: off. The trial
    of `relay check` passes no `listen`, so that sockets are only bound, the bindings of the running relay in
    `inherited`, and its addresses as `ours`.
    """
    workers = settings.workers or usable_cpus()
    notes: list[str] = []
    # Before any socket is bound: this process holds every worker's listening sockets.
    descriptors = raise_descriptor_limit()
    problems: list[str] = []
    # Likewise: once a socket listens, clients connect, and would wait for the self-test.
    engine = choose(settings.engine, workers)
    if settings.engine == "ring" and engine.problem:
        problems.append(ring_problem(engine))
    numbers = Numbers()
    bound = bind_all(settings, workers, numbers, inherited or {}, problems, notes, listen=listen, ours=ours)
    own = max(sum(len(item.bindings) for item in bound), 1)
    problems += source_problems(settings.dial.source_addresses)
    capacity = (descriptors - RESERVED_DESCRIPTORS - own) // 2
    sockets = sum(1 if binding.inherited is not None else workers for item in bound for binding in item.bindings)
    if capacity < 1:
        problems.append(
            f"limits: the descriptor limit of {descriptors} carries no connection; raise LimitNOFILE or `ulimit -n`"
        )
    elif sockets + PER_WORKER * workers + RESERVED_DESCRIPTORS > descriptors:
        problems.append(
            f"limits: the descriptor limit of {descriptors} is too low for {sockets} listening sockets, one for each "
            "address and worker; raise LimitNOFILE or `ulimit -n`, or set fewer workers"
        )
    if problems:
        _close(bound)
        raise StartError(problems)
    layout = Layout(
        len(bound) + SPARE_LISTENERS,
        UPSTREAM_SLOTS,
        len(OUTCOMES),
        len(settings.dial.source_addresses) + 1,
        ROUTE_SLOTS,
    )
    limits = limit_plan(settings, None, workers, capacity, listener_limits(bound, layout.listeners))
    notes += settings_warnings(settings) + limit_notes(settings, descriptors, limits)
    try:
        table, rates = Table.create(limits, layout, len(REFUSALS)), RateTable.create(rate_plan(settings, numbers))
        customers = CustomerTables(table, rates, descriptors)
        customers.switch(customers.prepare(settings, numbers.listeners))
    except (OSError, ValueError) as error:  # ValueError: too large for mmap
        _close(bound)
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise StartError([f"no shared memory for the counters of {workers} workers: {reason}"]) from None
    return Instance(
        settings=settings,
        settings_hash=fingerprint(settings),
        workers=workers,
        listeners=bound,
        numbers=numbers,
        limits=limits,
        layout=layout,
        table=table,
        rates=rates,
        descriptors=descriptors,
        source_ports=most_in_use(source_ports()),
        source_key=secrets.token_hex(16),
        engine=engine.name,
        engine_reason=engine.reason,
        engine_word=engine.word,
        inherited=inherited or {},
        watchdog=watchdog,
        customers=customers,
        notes=notes,
    )


def bind_all(
    settings: Settings,
    workers: int,
    numbers: Numbers,
    existing: ExistingBindings,
    problems: list[str],
    notes: list[str],
    *,
    listen: bool = True,
    ours: Collection[str] = (),
) -> list[BoundListener]:
    """Bind every listener of the settings; new listeners, upstreams and routes get the next numbers.

    Appends to `problems` and `notes`, and adds the new numbers to `numbers`.
    """
    tcp = tcp_options(settings)
    bound = [
        BoundListener(
            numbers.listeners.setdefault(item.name, len(numbers.listeners)),
            item.name,
            bind(item, workers, tcp, existing, problems, notes, listen=listen, ours=ours),
            _destinations(numbers, item.upstream),
            item.max_connections,
            item.sni,
            item.proxy_protocol,
            SEND_PROXY[item.send_proxy_protocol],
            tuple(_route(numbers, item.name, route) for route in item.routes),
        )
        for item in settings.listeners
    ]
    listening = [*endpoints(bound), *http_endpoints(settings)]
    problems += [
        f"listeners.{item.name}.upstream: {text}: {OWN}: each connection would lead to another one"
        for item in settings.listeners
        for text in item.destinations
        if is_literal_own(text, listening)
    ]
    checks = upstream_checks(settings.health_check, settings.listeners).values()
    if any(check.settings.tls for check in checks) and (problem := trust_problem()):
        problems.append(f"health_check.tls: {problem}")
    return bound


def _close(bound: Sequence[BoundListener]) -> None:
    for listener in bound:
        for binding in listener.bindings:
            binding.close()


def http_endpoints(settings: Settings) -> list[Endpoint]:
    """The endpoints of the admin and health ports in the settings; [::] takes IPv4 as well, Linux's default."""
    return [written(text, both=True) for text in (settings.admin.bind, settings.health.bind) if text]


def is_literal_own(upstream: str, listening: Sequence[Endpoint]) -> bool:
    """Whether an upstream of the settings is a literal address at which this relay itself listens."""
    host, port = parse_hostport(upstream, allow_name=True)
    return literal(host, port) is not None and is_own(host, port, listening)


def listener_limits(bound: Sequence[BoundListener], slots: int) -> list[int]:
    """The listeners' own `max_connections` by number; 0: no limit, or no such listener."""
    limits = [0] * slots
    for item in bound:
        limits[item.number] = item.max_connections
    return limits


def limit_notes(settings: Settings, descriptors: int, limits: LimitPlan) -> list[str]:
    """A warning if `limits.max_connections` is more than the descriptors carry."""
    wanted = settings.limits.max_connections
    if wanted <= limits.total_capacity:
        return []
    return [
        f"limits.max_connections is {wanted}, but {descriptors} descriptors a worker carry "
        f"{limits.total_capacity} connections in all: raise LimitNOFILE or `ulimit -n`"
    ]


def watchdog_notes(settings: Settings, watchdog: float) -> list[str]:
    """A warning if the service manager's watchdog would end relay before the supervisor has replaced a hung worker.

    `watchdog` is its timeout in seconds, 0: off.
    """
    timeout = settings.supervision.hang_timeout
    if not watchdog or 0 < timeout <= watchdog - REPLACED:
        return []
    when = f"after {timeout:g} s, too close to" if timeout else "never, unlike all of relay, by"
    advice = f"make WatchdogSec {timeout + REPLACED:g} or more" if timeout else "set it, to 10 say"
    return [
        f"supervision.hang_timeout: a worker that hangs is replaced {when} the service manager's watchdog "
        f"({watchdog:g} s): {advice}"
    ]


def ring_problem(engine: Choice) -> str:
    """The error line for `engine = "ring"` where io_uring does not work."""
    return f'engine: "ring" does not work here: {engine.problem}; "auto" or "stream" does'


def _destinations(numbers: Numbers, texts: Sequence[str]) -> Destinations:
    """(number, host, port) of each upstream; the same host and port in two listeners or routes is one upstream."""
    found = []
    for text in texts:
        host, port = parse_hostport(text, allow_name=True)
        number = numbers.upstreams.setdefault(format_hostport(host, port), len(numbers.upstreams))
        found.append((number, host, port))
    return tuple(found)


def _route(numbers: Numbers, listener: str, route: Route) -> RouteSpec:
    bucket = numbers.buckets.setdefault(route.name, len(numbers.buckets)) if route.rate else NO_BUCKET
    return RouteSpec(
        number=numbers.routes.setdefault((listener, route.name), len(numbers.routes)),
        name=route.name,
        sni=route.sni,
        upstreams=_destinations(numbers, route.upstream),
        backup=_destinations(numbers, route.backup),
        bucket=bucket,
        optional=route.optional,
    )
