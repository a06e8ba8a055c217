"""The JSON object of `GET /status`: written by `status`, read by the commands and the demo.

Durations are in seconds, counters are since the start. A relay of another version may answer with fewer or more keys.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class DrainStatus(TypedDict):
    """The drain under way; also the answer to `POST /drain`."""

    phase: str  # a value of core.drain.Phase
    reason: str
    ends: bool  # whether the process ends after it
    seconds_left: float


class Connections(TypedDict):
    """Connections of the whole instance."""

    active: int
    admitted: int  # counted against limits.max_connections now
    accepted: int
    outcomes: dict[str, int]  # every outcome by its label, with 0 as well


class Bytes(TypedDict):
    """Bytes received from clients (up) and from upstreams (down)."""

    up: int
    down: int


class RouteStatus(TypedDict):
    """One route of a listener. One that a reload has removed has no upstream, and is shown while it has connections."""

    name: str
    sni: list[str]
    upstream: list[str]
    backup: list[str]
    state: str  # a value of supervisor.routes.RouteState, or "removed"
    active: int
    accepted: int  # connections that took the route
    bytes_up: int
    bytes_down: int
    outcomes: dict[str, int]  # those that occurred


class ListenerStatus(TypedDict):
    """One listener. One that a reload has removed has no addresses, and is shown while it has connections."""

    name: str
    bind: list[str]
    upstream: list[str]
    active: int
    accepted: int
    max_connections: int  # 0: no limit of its own
    bytes_up: int
    bytes_down: int
    outcomes: dict[str, int]  # those that occurred
    routes: list[RouteStatus]


class AddressStatus(TypedDict):
    """One address, host:port, of an upstream."""

    address: str
    up: bool
    reason: str  # why it is never dialled, or why its last check failed; empty while it is up


class UpstreamStatus(TypedDict):
    """One upstream, host:port as configured."""

    name: str
    up: bool
    addresses: list[AddressStatus]
    error: str  # why there are no addresses
    answer_age_seconds: float | None  # None: no answer yet, or the host is no name
    certificate_expiry: float | None  # seconds since the epoch; None: no check has verified a certificate


class WorkerStatus(TypedDict):
    """One place in the worker pool, and the process in it."""

    index: int
    pid: int | None  # None: none runs now
    ready: bool
    hung: bool
    heartbeat_age_seconds: float | None
    loop_lag_seconds: float
    active: int
    held_bytes: int
    restarts: int


class EventStatus(TypedDict):
    """One scheduled event of Azure's that concerns this machine."""

    id: str
    type: str
    status: str
    seconds_left: float


class ScheduledEventsStatus(TypedDict):
    """What Azure's metadata service says."""

    ok: bool | None  # how the last poll went; None: none has ended
    answer_age_seconds: float | None
    error: str
    own_name: str
    own_name_error: str
    events: list[EventStatus]


class SettingsSourceStatus(TypedDict):
    """What the last `relay fetch-settings` says about the source of the settings."""

    up: bool
    error: str  # why it is not up; else empty
    held_back: str  # why this machine does not take new settings yet; else empty
    checked_at: str  # RFC 3339
    hash: str  # of the settings in the file; empty: there are no valid ones


class CustomerStatus(TypedDict):
    """One customer who had a connection. One that a reload has removed is shown while it has connections."""

    name: str
    active: int
    accepted: int  # those included that were then refused
    max_connections: int  # 0: no limit
    bytes_up: int
    bytes_down: int
    refused: dict[str, int]  # by outcome, those that occurred


class RelayStatus(TypedDict):
    """The whole answer."""

    version: str
    engine: str
    engine_reason: str
    pid: int
    uptime_seconds: float
    state: str  # starting, ready, unready or draining
    reason: str  # what /readyz answers
    live: bool  # what /livez answers
    drain: DrainStatus | None
    max_connections: int
    descriptors: int
    connections: Connections
    bytes: Bytes
    listeners: list[ListenerStatus]
    upstreams: list[UpstreamStatus]
    customers: NotRequired[list[CustomerStatus]]  # added in parts: `customer_status`
    dial_queue: int
    workers: list[WorkerStatus]
    scheduled_events: ScheduledEventsStatus | None  # None: azure.scheduled_events is off
    http_ports: dict[str, str]  # "admin" and "health", those that are on: host:port
    reloads: dict[str, int]  # "ok" and "failed"
    settings_hash: str  # of the settings in force
    settings_source: SettingsSourceStatus | None  # None: nothing fetches settings here
    start_only: dict[str, Any]  # settings that a reload cannot change, by name
    accept_pauses: int
    log_lines_dropped: int
