"""What a worker is told at its start: plain values, made by the supervisor from the settings.

A worker never reads settings, files or the environment, and starts without the libraries that do.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from relay.core.limit_table import LimitPlan
from relay.engines.contract import TcpOptions, Timeouts


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """One listener, as a worker needs to know it."""

    name: str
    upstreams: tuple[tuple[int, str, int], ...]  # (number of the upstream, host, port)
    sockets: int  # how many listening sockets come with the start message for this listener
    sni: tuple[str, ...]  # names that are let through; empty: all, unread


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to know. Durations in seconds."""

    index: int
    engine: str
    listeners: tuple[ListenerSpec, ...]
    upstreams: tuple[str, ...]  # host:port by number
    limits: LimitPlan
    source_key: str  # hexadecimal; secret of this instance
    source_prefix_v4: int
    source_prefix_v6: int
    access_allow: tuple[str, ...]
    access_deny: tuple[str, ...]
    client_hello_timeout: float
    connect_timeout: float
    nameservers: tuple[tuple[str, int], ...]
    timeouts: Timeouts
    tcp: TcpOptions
    held_bytes: int  # 0: no limit
    access_log: bool
    log_format: str
    debug: bool

    def to_file(self) -> int:
        """The descriptor of an anonymous file with all of it: of any length, unlike a message. Raises OSError."""
        descriptor = os.memfd_create("relay-orders", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(self.to_json().encode())
        return descriptor

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
        limits["listeners"] = tuple(limits["listeners"])
        return cls(
            listeners=tuple(
                ListenerSpec(
                    item["name"],
                    tuple((n, host, port) for n, host, port in item["upstreams"]),
                    item["sockets"],
                    tuple(item["sni"]),
                )
                for item in raw.pop("listeners")
            ),
            upstreams=tuple(raw.pop("upstreams")),
            access_allow=tuple(raw.pop("access_allow")),
            access_deny=tuple(raw.pop("access_deny")),
            limits=LimitPlan(**limits),
            nameservers=tuple((host, port) for host, port in raw.pop("nameservers")),
            timeouts=Timeouts(**raw.pop("timeouts")),
            tcp=TcpOptions(**raw.pop("tcp")),
            **raw,
        )
