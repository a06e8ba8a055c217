"""The WorkerSpec, a worker's configuration: plain values that the supervisor makes from the settings.

A worker receives it at its start and at each reload. It never reads settings, files or the environment itself, and so
starts without the libraries for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import TcpOptions, Timeouts
from relay.ipc import memory

ProxyProtocol = Literal["off", "accept", "require"]


Destinations = Sequence[tuple[int, str, int]]  # (number of the upstream, host, port)


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """The configuration of one route of a listener in a worker."""

    number: int
    name: str
    sni: tuple[str, ...]
    upstreams: Destinations
    backup: Destinations
    bucket: int  # of the route's rate; NO_BUCKET: dial.rate applies
    optional: bool  # off while no upstream resolves


NO_BUCKET = -1


@dataclass(frozen=True, slots=True)
class ListenerTimeouts:
    """The timeouts of one listener's connections, in seconds; 0 turns one off."""

    client_hello: float
    idle: float
    half_close: float
    max_age: float
    max_age_jitter: float  # the part of max_age by which it may be shortened at random

    @property
    def of_engine(self) -> Timeouts:
        """Those that the engine applies by itself."""
        return Timeouts(self.idle, self.half_close)


@dataclass(frozen=True, slots=True)
class ListenerAccess:
    """The access list of one listener, in place of the instance's."""

    allow: tuple[str, ...]  # empty: everybody, or with customers nobody but them
    deny: tuple[str, ...]  # with the instance's


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """The configuration of one listener in a worker."""

    number: int
    name: str
    upstreams: Destinations  # empty: what no route matches is refused
    addresses: tuple[tuple[str, bool], ...]  # (address, whether other processes accept from the same queue)
    sni: tuple[str, ...]  # names besides those of routes that are let through; empty: any, and what is no TLS
    proxy_protocol: ProxyProtocol
    send_proxy: int  # version of the PROXY protocol towards the upstream, 0: none
    timeouts: ListenerTimeouts
    routes: tuple[RouteSpec, ...] = ()  # in the order in which they are tried
    access: ListenerAccess | None = None  # None: the instance's
    trusted_proxies: tuple[str, ...] = ()  # whose PROXY headers count; empty: every sender's


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The complete configuration of a worker. Durations are in seconds."""

    index: int
    engine: str
    slots: tuple[int, int, int]  # how many listeners, upstreams and routes the shared table has room for
    listeners: tuple[ListenerSpec, ...]
    upstreams: tuple[str, ...]  # host:port by number
    limits: LimitPlan
    rates: RatePlan
    source_key: str  # hexadecimal; secret of this instance
    source_prefix_v4: int
    source_prefix_v6: int
    access_allow: tuple[str, ...]
    access_deny: tuple[str, ...]
    connect_timeout: float  # of each dial
    dial_timeout: float  # of all dials of one connection together; 0: no limit
    source_addresses: tuple[str, ...]
    source_ports: int  # for all workers together, for each pair of source and upstream address
    eject_after: int  # failed dials in a row
    eject_seconds: float
    ejections: tuple[tuple[int, int, float], ...]  # by number of the upstream, where it has an ejection of its own
    timeouts: Timeouts  # of connections whose listener a reload has removed
    drain_window: float
    tcp: TcpOptions
    held_bytes: int  # 0: no limit
    access_log: bool
    log_format: str
    debug: bool
    customers: int = 0  # number of the customers' table, which comes with the spec; 0: there are none
    only_customers: bool = False  # nobody else is admitted

    def to_file(self) -> int:
        """Write the spec to an anonymous file and return its descriptor: a message has a size limit. Raises OSError."""
        return memory.read_only("relay-orders", self.to_json().encode())

    @classmethod
    def from_file(cls, descriptor: int) -> WorkerSpec:
        """Read a spec back from its file, and close the descriptor."""
        with open(descriptor, "rb") as file:
            file.seek(0)
            return cls.from_json(file.read().decode())

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSpec:
        raw = json.loads(text)
        limits = raw.pop("limits")
        rates = raw.pop("rates")
        limits["listeners"] = tuple(limits["listeners"])
        return cls(
            listeners=tuple(
                ListenerSpec(
                    item["number"],
                    item["name"],
                    _destinations(item["upstreams"]),
                    tuple((address, shared) for address, shared in item["addresses"]),
                    tuple(item["sni"]),
                    item["proxy_protocol"],
                    item["send_proxy"],
                    ListenerTimeouts(**item["timeouts"]),
                    tuple(
                        RouteSpec(
                            route["number"],
                            route["name"],
                            tuple(route["sni"]),
                            _destinations(route["upstreams"]),
                            _destinations(route["backup"]),
                            route["bucket"],
                            route["optional"],
                        )
                        for route in item["routes"]
                    ),
                    _access(item["access"]),
                    tuple(item["trusted_proxies"]),
                )
                for item in raw.pop("listeners")
            ),
            slots=tuple(raw.pop("slots")),
            upstreams=tuple(raw.pop("upstreams")),
            access_allow=tuple(raw.pop("access_allow")),
            access_deny=tuple(raw.pop("access_deny")),
            limits=LimitPlan(**limits),
            rates=RatePlan(
                Rate(**rates.pop("accept")),
                Rate(**rates.pop("source")),
                Rate(**rates.pop("dial")),
                tuple(Rate(**rate) for rate in rates.pop("routes")),
                **rates,
            ),
            ejections=tuple((number, fall, seconds) for number, fall, seconds in raw.pop("ejections")),
            source_addresses=tuple(raw.pop("source_addresses")),
            timeouts=Timeouts(**raw.pop("timeouts")),
            tcp=TcpOptions(**raw.pop("tcp")),
            **raw,
        )


def _access(raw: dict[str, list[str]] | None) -> ListenerAccess | None:
    return ListenerAccess(tuple(raw["allow"]), tuple(raw["deny"])) if raw is not None else None


def _destinations(items: Iterable[tuple[int, str, int]]) -> Destinations:
    return tuple((number, host, port) for number, host, port in items)
