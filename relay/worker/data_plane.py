"""The data plane of a worker: its engine, its listeners and its connections, as the latest `WorkerSpec` has them.

A reload gives each listening address a new `Frontend`. Connections accepted before keep theirs, and so end with the
accounting, the limits and the source ports that they started with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import random
import socket
import time
from collections.abc import Callable, Sequence

from relay.address import Address
from relay.core.access_list import AccessList
from relay.core.balance import Balance, Ejection
from relay.core.customers import CustomerTable
from relay.core.limits import Limits
from relay.core.rates import Rates
from relay.engines.choice import make_engine
from relay.engines.contract import Action, Engine, SharedTimeouts
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import NO_BUCKET, ListenerAccess, ListenerSpec, ListenerTimeouts, RouteSpec, WorkerSpec
from relay.worker.connection.access_log import AccessLog
from relay.worker.connection.accounting import Accounting
from relay.worker.connection.admission import Admission, SourceHash
from relay.worker.connection.customers import Customers
from relay.worker.connection.dial_queue import DialQueue
from relay.worker.connection.preread import PrereadFilter, RouteChoice
from relay.worker.connection.record import ConnectionRecord, Found, Frontend
from relay.worker.connection.refusal_log import RefusalLog
from relay.worker.connection.source_ports import SourcePorts
from relay.worker.connection.transitions import Connection, accept, resume
from relay.worker.connection.upstreams import Route, Upstreams


class DataPlane:
    """The engine of one worker and everything that its connections need.

    `write` writes a line of the access log; None: there is no access log. `report` is called with hosts none of whose
    addresses could be connected to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spec: WorkerSpec,
        table: Table,
        rates: RateTable,
        write: Callable[[str], None] | None,
        report: Callable[[list[str]], None],
    ) -> None:
        self._loop = loop
        self._spec = spec
        self._table, self._rates = table, rates
        self._clock = time.monotonic
        self._upstream_names: list[str] = []  # by number
        self.engine: Engine = make_engine(
            spec.engine,
            loop,
            spec.timeouts,
            spec.tcp,
            report_source=spec.access_log,
            held_limit=spec.held_bytes,
        )
        self.access_log: RefusalLog | None = None
        if write is not None:
            lines = AccessLog(write, self._upstream_names, spec.log_format)
            self.access_log = RefusalLog(lines, write, spec.log_format, self._clock)
        block = table.blocks[spec.index]
        self._accounting = Accounting(block, table.layout, self._clock, self.access_log)
        self._customers = Customers(table.customer_blocks[spec.index], table.customer_layout)
        self._source_ports = SourcePorts(
            spec.source_addresses, spec.source_ports, table.layout, table.blocks, spec.index
        )
        self._balance = Balance(spec.eject_after, spec.eject_seconds)
        self.upstreams = Upstreams(self._balance, self._source_ports, _first_timeout(spec), report)
        self._dial_queues: dict[int, DialQueue[ConnectionRecord]] = {}  # by bucket; NO_BUCKET: that of dial.rate
        self._listening: dict[str, _ListeningAddress] = {}  # by address
        self._timeouts: dict[int, SharedTimeouts] = {}  # by number of the listener; for its connections of all reloads
        self.ages = False  # whether connections of a listener have a maximum age

    @property
    def queued(self) -> int:
        """The number of connections in the dial queues."""
        return sum(map(len, self._dial_queues.values()))

    def apply(
        self,
        spec: WorkerSpec,
        addresses: Sequence[str],
        sockets: list[socket.socket],
        customers: CustomerTable | None = None,
    ) -> None:
        """Serve new connections as `spec` says; established ones stay as they are.

        `sockets` are new listening sockets, and `addresses` the addresses that they are bound to.
        """
        self._spec = spec
        self._upstream_names[:] = spec.upstreams
        logging.getLogger().setLevel(logging.DEBUG if spec.debug else logging.WARNING)
        self._set_timeouts(spec)
        self._balance.configure(spec.eject_after, spec.eject_seconds)
        ejections = {number: Ejection(fall, seconds) for number, fall, seconds in spec.ejections}
        self.upstreams.configure(_first_timeout(spec), ejections)
        buckets = self._rates.rates(alone=spec.limits.workers == 1, plan=spec.rates)
        limits = self._table.limits(spec.index, spec.limits, customers.limits if customers is not None else ())
        self._customers.use(customers, spec.customers, limits, buckets)
        admission = self._admission(spec, limits, buckets)
        new = dict(zip(addresses, sockets, strict=True))
        previous, self._listening = self._listening, {}
        for listener in spec.listeners:
            own = self._own_admission(listener.access, admission) if listener.access is not None else admission
            frontend = self._frontend(listener, own, buckets)
            for address, shared in listener.addresses:
                listening = previous.pop(address, None)
                if listening is not None:
                    listening.frontend = frontend
                    if address in new:  # the socket had been closed, by a drain
                        listening.sock = new[address]
                        self.engine.listen(listening.sock, listening, shared=shared)
                else:
                    listening = _ListeningAddress(frontend, new[address])
                    self.engine.listen(listening.sock, listening, shared=shared)
                self._listening[address] = listening
        for listening in previous.values():
            self.engine.unlisten(listening.sock)

    def _set_timeouts(self, spec: WorkerSpec) -> None:
        """Give every listener its timeouts, at once for established connections too.

        Those of a listener that a reload has removed get the instance's.
        """
        for number in self._timeouts.keys() - {listener.number for listener in spec.listeners}:
            self._timeouts[number].set(spec.timeouts)
        for listener in spec.listeners:
            timeouts, ages = listener.timeouts.of_engine, bool(listener.timeouts.max_age)
            shared = self._timeouts.setdefault(listener.number, SharedTimeouts(timeouts))
            shared.set(timeouts, ages=ages)
        self.ages = any(listener.timeouts.max_age for listener in spec.listeners)
        self.engine.configure(spec.timeouts, spec.tcp, [listener.timeouts.of_engine for listener in spec.listeners])

    def _frontend(self, listener: ListenerSpec, admission: Admission, buckets: Rates) -> Frontend:
        frontend = Frontend(
            index=listener.number,
            name=listener.name,
            admission=admission,
            preread=None,
            send_proxy=listener.send_proxy,
            local_address=self.engine.local_address,
            route=self.upstreams.route(listener.upstreams) if listener.upstreams else None,
            balance=self._balance,
            source_ports=self._source_ports,
            dial_queue=self._dial_queue(buckets),
            resume=resume,
            perform=self.engine.perform,
            accounting=self._accounting,
            clock=self._clock,
            dial_timeout=self._spec.dial_timeout,
            lifetime=_lifetime(listener.timeouts),
            timeouts=self._timeouts[listener.number],
            customers=self._customers if self._customers.any else None,
        )
        if listener.sni or listener.routes or listener.proxy_protocol != "off":
            frontend.preread = self._preread(listener, frontend, buckets)
        return frontend

    def _preread(self, listener: ListenerSpec, frontend: Frontend, buckets: Rates) -> PrereadFilter[Frontend]:
        """The preread filter of a listener, with a frontend for each of its routes."""
        routes = [self.upstreams.route(spec.upstreams, spec.backup) for spec in listener.routes]
        preread = PrereadFilter(
            listener.sni,
            listener.timeouts.client_hello,
            listener.proxy_protocol,
            [
                RouteChoice(spec.sni, _is_on(spec, route), self._route_frontend(spec, route, frontend, buckets))
                for spec, route in zip(listener.routes, routes, strict=True)
            ],
            own=frontend.route is not None,
            trusted=AccessList(listener.trusted_proxies, ()) if listener.trusted_proxies else None,
        )
        for spec, route in zip(listener.routes, routes, strict=True):
            if spec.optional:
                route.changed = preread.refresh
        return preread

    def _route_frontend(self, spec: RouteSpec, route: Route, frontend: Frontend, buckets: Rates) -> Frontend:
        return dataclasses.replace(
            frontend,
            route=route,
            route_name=spec.name,
            accounting=self._accounting.of_route(spec.number),
            dial_queue=self._dial_queue(buckets, spec.bucket),
        )

    def _admission(self, spec: WorkerSpec, limits: Limits, buckets: Rates) -> Admission:
        source_hash = None
        if spec.limits.per_source or spec.rates.source.per_second:
            key = bytes.fromhex(spec.source_key)
            source_hash = SourceHash(key, spec.source_prefix_v4, spec.source_prefix_v6)
        access = None
        if spec.access_allow or spec.access_deny:
            access = AccessList(spec.access_allow, spec.access_deny)
        limited = spec.rates.source.per_second or spec.rates.accept.per_second
        return Admission(
            limits,
            source_hash,
            access,
            buckets if limited else None,
            AccessList((), spec.access_deny) if spec.access_deny else None,
            only_customers=spec.only_customers,
        )

    def _own_admission(self, own: ListenerAccess, admission: Admission) -> Admission:
        """The instance's admission with the access list of a listener in place of its own."""
        return admission.with_access(
            AccessList(own.allow, own.deny) if own.allow or own.deny else None,
            AccessList((), own.deny) if own.deny else None,
            only_customers=self._customers.any and not own.allow,
        )

    def _dial_queue(self, buckets: Rates, bucket: int = NO_BUCKET) -> DialQueue[ConnectionRecord] | None:
        """The dial queue of a route's rate, or that of dial.rate; None without a rate.

        Connections already in it keep the turns that they have reserved.
        """
        if bucket == NO_BUCKET and not self._spec.rates.dial.per_second:
            return None
        reserve = buckets.dial if bucket == NO_BUCKET else functools.partial(buckets.dial_on_route, bucket)
        dial_queue = self._dial_queues.get(bucket)
        if dial_queue is None:
            turn = functools.partial(resume, found=Found.TURN)
            dial_queue = self._dial_queues[bucket] = DialQueue(reserve, self._loop, time.monotonic_ns, turn)
        dial_queue.reserve_by(reserve)
        return dial_queue


class _ListeningAddress:
    """A listening address: the engine calls it for each accepted connection. A reload replaces its frontend."""

    __slots__ = ("frontend", "sock")

    def __init__(self, frontend: Frontend, sock: socket.socket) -> None:
        self.frontend = frontend
        self.sock = sock

    def __call__(self, client: Address) -> tuple[Connection, Action]:
        return accept(self.frontend, client)


def _is_on(spec: RouteSpec, route: Route) -> Callable[[], bool]:
    """Whether a route is on: always, or for an optional one, while it has an address to dial."""
    return (lambda: route.resolved) if spec.optional else (lambda: True)


def _first_timeout(spec: WorkerSpec) -> float:
    """The timeout of a connection's first dial, in seconds; later dials are cut to the rest of `dial_timeout`."""
    return min(spec.connect_timeout, spec.dial_timeout) if spec.dial_timeout else spec.connect_timeout


def _lifetime(timeouts: ListenerTimeouts) -> Callable[[], float] | None:
    """Return a function that draws a connection's lifetime in seconds: max_age, less a random part of it.

    None: there is no maximum age.
    """
    longest, jitter = timeouts.max_age, timeouts.max_age_jitter
    if not longest:
        return None

    def seconds() -> float:
        return longest * (1.0 - jitter * random.random())

    return seconds
