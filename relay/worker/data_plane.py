"""What a worker does for clients: accepts at its addresses and carries connections through, as the latest orders say.

A reload gives each address another `Frontend`. Connections that were accepted before keep the one that they came
through, and end with the account, the counts and the ports that they began with.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import socket
import time
from collections.abc import Callable, Sequence

from relay.address import Address
from relay.core.access_list import AccessList
from relay.core.balance import Balance
from relay.core.rates import Rates
from relay.engines.choice import make_engine
from relay.engines.contract import Action, Engine
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import ListenerSpec, WorkerSpec
from relay.worker.connection.access_log import AccessLog
from relay.worker.connection.accounting import Accounting
from relay.worker.connection.admission import Admission, SourceHash
from relay.worker.connection.dial_queue import DialQueue
from relay.worker.connection.preread import PrereadFilter
from relay.worker.connection.record import ConnectionRecord, Found, Frontend
from relay.worker.connection.refusal_log import RefusalLog
from relay.worker.connection.source_ports import SourcePorts
from relay.worker.connection.transitions import Connection, accept, resume
from relay.worker.connection.upstreams import Upstreams


class DataPlane:
    """The engine of one worker and what stands above it.

    `write` takes lines for the access log, or is None where there is none; `report` is told of hosts none of whose
    addresses can be connected to.
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
        self._names: list[str] = []  # of upstreams, by number
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
            lines = AccessLog(write, self._names, spec.log_format)
            self.access_log = RefusalLog(lines, write, spec.log_format, self._clock)
        block = table.blocks[spec.index]
        self._accounting = Accounting(block, table.layout, self._clock, self.access_log)
        self._source_ports = SourcePorts(
            spec.source_addresses, spec.source_ports, table.layout, table.blocks, spec.index
        )
        self._balance = Balance(spec.eject_after, spec.eject_seconds)
        self.upstreams = Upstreams(self._balance, self._source_ports, _first_timeout(spec), report)
        self._dial_queue: DialQueue[ConnectionRecord] | None = None
        self._served: dict[str, _Address] = {}  # by address
        self.lifetime: Callable[[], float] | None = None  # seconds that a connection may live

    @property
    def queued(self) -> int:
        """Connections that wait for their turn to be dialled."""
        return len(self._dial_queue) if self._dial_queue is not None else 0

    def apply(self, spec: WorkerSpec, addresses: Sequence[str], sockets: list[socket.socket]) -> None:
        """Serve as `spec` says from now on; established connections stay as they are.

        `addresses` are those that a socket has come for.
        """
        self._spec = spec
        self._names[:] = spec.upstreams
        logging.getLogger().setLevel(logging.DEBUG if spec.debug else logging.WARNING)
        self.engine.configure(spec.timeouts, spec.tcp)
        self._balance.configure(spec.eject_after, spec.eject_seconds)
        self.upstreams.configure(_first_timeout(spec))
        self.lifetime = _lifetime(spec.max_age, spec.max_age_jitter) if spec.max_age else None
        buckets = self._rates.rates(alone=spec.limits.workers == 1, plan=spec.rates)
        admission, dial_queue = self._admission(spec, buckets), self._dials(spec, buckets)
        new = dict(zip(addresses, sockets, strict=True))
        served, self._served = self._served, {}
        for listener in spec.listeners:
            frontend = self._frontend(listener, admission, dial_queue)
            for address, shared in listener.addresses:
                one = served.pop(address, None)
                if one is not None:
                    one.frontend = frontend
                    if address in new:  # it had been closed
                        one.sock = new[address]
                        self.engine.listen(one.sock, one, shared=shared)
                else:
                    one = _Address(frontend, new[address])
                    self.engine.listen(one.sock, one, shared=shared)
                self._served[address] = one
        for one in served.values():
            self.engine.unlisten(one.sock)

    def _frontend(
        self, listener: ListenerSpec, admission: Admission, dial_queue: DialQueue[ConnectionRecord] | None
    ) -> Frontend:
        preread = None
        if listener.sni or listener.proxy_protocol != "off":
            preread = PrereadFilter(listener.sni, self._spec.client_hello_timeout, listener.proxy_protocol)
        return Frontend(
            index=listener.number,
            name=listener.name,
            admission=admission,
            preread=preread,
            send_proxy=listener.send_proxy,
            local_address=self.engine.local_address,
            route=self.upstreams.route(listener.upstreams),
            balance=self._balance,
            source_ports=self._source_ports,
            dial_queue=dial_queue,
            resume=resume,
            perform=self.engine.perform,
            accounting=self._accounting,
            clock=self._clock,
            dial_timeout=self._spec.dial_timeout,
            lifetime=self.lifetime,
        )

    def _admission(self, spec: WorkerSpec, buckets: Rates) -> Admission:
        source_hash = None
        if spec.limits.per_source or spec.rates.source.per_second:
            key = bytes.fromhex(spec.source_key)
            source_hash = SourceHash(key, spec.source_prefix_v4, spec.source_prefix_v6)
        access = None
        if spec.access_allow or spec.access_deny:
            access = AccessList(spec.access_allow, spec.access_deny)
        limited = spec.rates.source.per_second or spec.rates.accept.per_second
        limits = self._table.limits(spec.index, spec.limits)
        return Admission(limits, source_hash, access, buckets if limited else None)

    def _dials(self, spec: WorkerSpec, buckets: Rates) -> DialQueue[ConnectionRecord] | None:
        """The queue for dials, if there is one; those that wait in it go on waiting for the turns that they have."""
        if not spec.rates.dial.per_second:
            return None
        if self._dial_queue is None:
            turn = functools.partial(resume, found=Found.TURN)
            self._dial_queue = DialQueue(buckets, self._loop, time.monotonic_ns, turn)
        self._dial_queue.set_rates(buckets)
        return self._dial_queue


class _Address:
    """What accepts at one address: called by the engine for each connection. A reload puts another frontend there."""

    __slots__ = ("frontend", "sock")

    def __init__(self, frontend: Frontend, sock: socket.socket) -> None:
        self.frontend = frontend
        self.sock = sock

    def __call__(self, client: Address) -> tuple[Connection, Action]:
        return accept(self.frontend, client)


def _first_timeout(spec: WorkerSpec) -> float:
    """Seconds for a connection's first dial; later ones are cut to what is left of `dial_timeout`."""
    return min(spec.connect_timeout, spec.dial_timeout) if spec.dial_timeout else spec.connect_timeout


def _lifetime(longest: float, jitter: float) -> Callable[[], float]:
    """Gives the seconds that a connection may live, `longest` at most and less by up to that part of it."""

    def seconds() -> float:
        return longest * (1.0 - jitter * random.random())

    return seconds
