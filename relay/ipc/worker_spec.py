"""What a worker is told at its start and by a reload: plain values, made by the supervisor from the settings.

A worker never reads settings, files or the environment, and starts without the libraries that do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import TcpOptions, Timeouts
from relay.ipc import memory

ProxyProtocol = Literal["off", "accept", "require"]


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """One listener, as a worker needs to know it."""

    number: int
    name: str
    upstreams: tuple[tuple[int, str, int], ...]  # (number of the upstream, host, port)
    addresses: tuple[tuple[str, bool], ...]  # listened on; whether others than relay have the socket too
    sni: tuple[str, ...]  # names that are let through; empty: all, unread
    proxy_protocol: ProxyProtocol
    send_proxy: int  # version of the PROXY protocol, 0: none


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to know. Durations in seconds."""

    index: int
    engine: str
    slots: tuple[int, int]  # numbers that there are of listeners and of upstreams
    listeners: tuple[ListenerSpec, ...]
    upstreams: tuple[str, ...]  # host:port by number
    limits: LimitPlan
    rates: RatePlan
    source_key: str  # hexadecimal; secret of this instance
    source_prefix_v4: int
    source_prefix_v6: int
    access_allow: tuple[str, ...]
    access_deny: tuple[str, ...]
    client_hello_timeout: float
    connect_timeout: float  # of each dial
    dial_timeout: float  # of all of one connection's dials together; 0: no limit
    source_addresses: tuple[str, ...]
    source_ports: int  # that all workers together may use for each pair of source and upstream address
    eject_after: int  # failed dials in a row
    eject_seconds: float
    timeouts: Timeouts
    max_age: float  # of a connection; 0: none
    max_age_jitter: float
    drain_window: float
    tcp: TcpOptions
    held_bytes: int  # 0: no limit
    access_log: bool
    log_format: str
    debug: bool

    def to_file(self) -> int:
        """The descriptor of an anonymous file with all of it: of any length, unlike a message. Raises OSError."""
        return memory.read_only("relay-orders", self.to_json().encode())

    @classmethod
    def from_file(cls, descriptor: int) -> WorkerSpec:
        """The inverse; closes the descriptor."""
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
                    tuple((n, host, port) for n, host, port in item["upstreams"]),
                    tuple((address, shared) for address, shared in item["addresses"]),
                    tuple(item["sni"]),
                    item["proxy_protocol"],
                    item["send_proxy"],
                )
                for item in raw.pop("listeners")
            ),
            slots=tuple(raw.pop("slots")),
            upstreams=tuple(raw.pop("upstreams")),
            access_allow=tuple(raw.pop("access_allow")),
            access_deny=tuple(raw.pop("access_deny")),
            limits=LimitPlan(**limits),
            rates=RatePlan(
                Rate(**rates.pop("accept")), Rate(**rates.pop("source")), Rate(**rates.pop("dial")), **rates
            ),
            source_addresses=tuple(raw.pop("source_addresses")),
            timeouts=Timeouts(**raw.pop("timeouts")),
            tcp=TcpOptions(**raw.pop("tcp")),
            **raw,
        )
