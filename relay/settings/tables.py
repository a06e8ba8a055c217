"""The tables of the settings: the name, type, unit, bounds and default of every setting.

`settings.model` puts the tables together and loads them; docs/configuration.md, `relay config` and the error messages
are made from both.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relay.settings.values import (
    BindOrOff,
    Count,
    Duration,
    HeldBytes,
    HostName,
    InARow,
    Listed,
    Nameserver,
    Network,
    Part,
    PerSecond,
    Section,
    SourceAddress,
    Url,
)


class LimitSettings(Section):
    """How many connections are admitted. A refused connection is closed at once and counted by its reason."""

    max_connections: Count = Field(
        default=0,
        description="most connections open at once, over all workers; 0 = what the descriptor limit allows, which is "
        "logged at start",
    )
    max_connections_per_source: Count = Field(
        default=0, description="most connections open at once from one source, over all workers; 0 = no limit"
    )
    connect_rate_per_source: PerSecond = Field(
        default=0.0,
        description="most new connections per second from one source, over all workers; 0 = no limit",
    )
    connect_burst_per_source: int = Field(
        default=10,
        ge=1,
        le=10_000_000,
        description="burst of limits.connect_rate_per_source: new connections that one source may open at once after a "
        "pause",
    )
    accept_rate: PerSecond = Field(
        default=0.0,
        description="most new connections per second, over all workers; the burst after a pause is one second's worth; "
        "0 = no limit",
    )
    held_bytes: HeldBytes = Field(
        default=67_108_864,
        description="most bytes that each worker buffers, received and not yet taken by the other side: 1048576 or "
        "more; at the limit a worker receives only what it can pass on at once; incomplete TLS hellos and PROXY "
        "headers may take a quarter of it, beyond which the oldest connections are refused; complete ones that wait "
        "for a connect do not count against it; 0 = no limit",
    )
    source_prefix_v4: int = Field(
        default=32,
        ge=1,
        le=32,
        description="prefix length of one source in IPv4, in bits: addresses with the same prefix count as one source",
    )
    source_prefix_v6: int = Field(
        default=64,
        ge=1,
        le=128,
        description="prefix length of one source in IPv6, in bits: addresses with the same prefix count as one source",
    )


class AccessSettings(Section):
    """Which client addresses may connect. A refused connection is closed at once."""

    allow: Annotated[tuple[Network, ...], Listed] = Field(
        default=(),
        description="networks whose clients are admitted, and no others: each like 10.0.0.0/8, 2001:db8::/32 or one "
        "address; empty = every client",
    )
    deny: Annotated[tuple[Network, ...], Listed] = Field(
        default=(),
        description="networks whose clients are refused, even where access.allow has them; in both lists a client "
        "address ::ffff:a.b.c.d matches IPv4 networks and IPv6 networks; empty = no client is refused",
    )


class DialSettings(Section):
    """How connections to the upstreams are opened."""

    connect_timeout: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="longest wait for one upstream address to answer a connect, in seconds",
    )
    timeout: Duration = Field(
        default=15.0,
        description="longest time that a connection may spend on connecting, in seconds from its first connect, over "
        "all upstream addresses it tries; waits in the dial queue count, except the one before the first connect; "
        "0 = no limit",
    )
    rate: PerSecond = Field(
        default=0.0,
        description="most connects per second, over all workers; the burst after a pause is a tenth of a second's "
        "worth; further connections wait in the dial queue; 0 = no limit and no queue",
    )
    queue: Count = Field(
        default=1000,
        description="most connections in the dial queue, over all workers; further ones are refused; 0 = none wait, "
        "those above dial.rate are refused",
    )
    queue_timeout: Duration = Field(
        default=10.0,
        description="longest wait in the dial queue, in seconds; connections that would wait longer are refused; 0 = "
        "none wait, those above dial.rate are refused",
    )
    source_addresses: Annotated[tuple[SourceAddress, ...], Listed] = Field(
        default=(),
        description="addresses of this machine to connect from; each has its own range of source ports towards an "
        "upstream address; empty = the kernel chooses the address",
    )


class DnsSettings(Section):
    """How the names of upstreams are resolved."""

    nameservers: Annotated[tuple[Nameserver, ...], Listed] = Field(
        default=(),
        description="DNS servers to query, each IP, IP:port or [IPv6]:port (without a port: 53), without a search "
        "list; empty = the system's servers and search list, from /etc/resolv.conf",
    )
    min_ttl: Annotated[float, Field(ge=1, le=31_536_000, allow_inf_nan=False)] = Field(
        default=5.0, description="shortest time that an answer is used, in seconds; a smaller TTL counts as this"
    )
    max_ttl: Annotated[float, Field(ge=1, le=31_536_000, allow_inf_nan=False)] = Field(
        default=300.0,
        description="longest time that an answer is used without a new query, in seconds; a greater TTL counts as this",
    )
    hold: Duration = Field(
        default=3600.0,
        description="how long the last good answer is used after its TTL while the name does not resolve, in seconds; "
        "0 = not beyond its TTL",
    )


class HealthCheckSettings(Section):
    """Active checks of the upstream addresses: each is connected to at an interval, and nothing is sent but with tls.

    A check may take dial.connect_timeout, and with tls its handshake counts.
    """

    interval: Duration = Field(
        default=5.0, description="interval between two checks of an address, in seconds; 0 = no active checks"
    )
    rise: InARow = Field(default=2, description="successful checks in a row after which an address counts as up")
    fall: InARow = Field(
        default=3,
        description="failed checks in a row after which an address counts as down; also failed connects in a row after "
        "which a worker avoids an address for a while",
    )
    tls: bool = Field(
        default=False,
        description="true = a check also makes a TLS handshake with the upstream's name (SNI), and verifies the "
        "certificate's chain, by the system's trust store, and its name; the upstreams are names then",
    )


class TimeoutSettings(Section):
    """When a connection is closed for taking too long."""

    client_hello: Duration = Field(
        default=5.0,
        description="longest wait for a client's PROXY header and TLS hello, in seconds, on listeners that read them; "
        "0 = no limit",
    )
    idle: Duration = Field(
        default=3600.0,
        description="longest time that a connection may be silent in both directions, in seconds; 0 = no limit",
    )
    half_close: Duration = Field(
        default=300.0,
        description="longest time that a half-closed connection (one side has sent its FIN) may be silent, in seconds; "
        "0 = timeouts.idle alone applies",
    )
    max_age: Duration = Field(
        default=0.0,
        description="age at which a connection is closed, in seconds, so that load spreads after a scale-out; where "
        "very many reach it together, the last are closed up to drain.window later; 0 = no limit",
    )
    max_age_jitter: Part = Field(
        default=0.1,
        description="largest random part of timeouts.max_age, from 0 to 1, by which a connection is closed earlier, so "
        "that connections of one age do not close together; 0 = all at max_age exactly",
    )


class TcpSettings(Section):
    """TCP options of the connections on both sides; see tcp(7)."""

    keepalive_idle: int = Field(
        default=60,
        ge=0,
        le=32_767,
        description="silence before the first keepalive probe, in seconds; 0 = no keepalive probes",
    )
    keepalive_interval: int = Field(
        default=15, ge=1, le=32_767, description="interval between keepalive probes, in seconds"
    )
    keepalive_count: int = Field(
        default=4, ge=1, le=127, description="unanswered keepalive probes in a row after which the peer counts as lost"
    )
    user_timeout: Annotated[float, Field(ge=0, le=2_147_483, allow_inf_nan=False)] = Field(
        default=30.0,
        description="longest time that a peer with unacknowledged data may stay without an answer, in seconds, before "
        "it counts as lost; a peer that answers may read as slowly as it likes; 0 = no limit of relay's own",
    )


class DrainSettings(Section):
    """How the instance goes out of service."""

    announce: Duration = Field(
        default=15.0,
        description="first phase of a drain, in seconds: /readyz says not ready and connections are still accepted, "
        "until the load balancer has noticed; set more than its probe interval times its threshold; 0 = accepting "
        "stops at once",
    )
    window: Duration = Field(
        default=60.0,
        description="second phase of a drain, in seconds: established connections are closed evenly over this time, "
        "oldest first; 0 = all at once",
    )


class SupervisionSettings(Section):
    """How hung workers are found. A worker that crashes is replaced in any case."""

    hang_timeout: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=10.0,
        description="longest time that a worker's event loop may not run, in seconds, before the worker is killed and "
        "replaced; 0 = never",
    )


class AdminSettings(Section):
    """The admin port: health, metrics, status, drain and reload. For operators and Prometheus, not for the public."""

    bind: BindOrOff = Field(
        default="127.0.0.1:8414",
        description="address to listen on, IPv4:port or [IPv6]:port; port 0 = a free port, which is logged at start; "
        "empty = no admin port",
    )
    hosts: Annotated[tuple[HostName, ...], Listed] = Field(
        default=(),
        description="host names, without a port, that a browser may use for the admin port, besides literal addresses "
        "and localhost; a browser's request under any other name is refused, whatever that name resolves to; empty = "
        "no further names",
    )


class HealthSettings(Section):
    """The health port: /livez, /readyz and /healthz only, for the load balancer."""

    bind: BindOrOff = Field(
        default="0.0.0.0:8080",
        description="address to listen on, IPv4:port or [IPv6]:port; port 0 = a free port, which is logged at start; "
        "empty = no health port",
    )


class MetricsSettings(Section):
    """What is exposed at /metrics."""

    customers: bool = Field(
        default=True,
        description="true = metrics of each customer who had a connection, relay_customer_*; with thousands of "
        "customers these are most of a scrape",
    )


class AzureSettings(Section):
    """What relay reads from the Azure Instance Metadata Service of its virtual machine."""

    scheduled_events: bool = Field(
        default=False,
        description="true = poll Azure Scheduled Events, and drain before this machine is evicted, deleted or rebooted",
    )
    metadata_url: Url = Field(
        default="http://169.254.169.254", description="URL of the instance metadata service, without a path"
    )
    settings_state: str = Field(
        default="/run/relay-settings/state.json",
        description="file in which `relay fetch-settings` reports whether this machine gets its settings, for "
        "/healthz, /status and metrics; where it is not there, nothing is reported; empty = none is written or read",
    )


class LogSettings(Section):
    """What is logged, and in which format."""

    format: Literal["json", "console"] = Field(
        default="json", description='"json" = one JSON object per line, "console" = for reading at a terminal'
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest severity that the service log has; the access log does not depend on it"
    )
    access: bool = Field(
        default=True, description="true = the access log has one line for each connection, when it ends"
    )
