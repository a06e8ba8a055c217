"""The tables of the settings: names, types, units, bounds and defaults of everything that can be set in each.

`settings` puts them together and loads them; docs/configuration.md, `relay config` and the messages follow from both.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relay.settings.values import (
    Bind,
    BindOrOff,
    Count,
    Duration,
    HeldBytes,
    HostName,
    Listed,
    ListenerName,
    Nameserver,
    Network,
    PerSecond,
    Section,
    ServerName,
    SourceAddress,
    Upstream,
    Url,
)


class LimitSettings(Section):
    """How many connections are let in. Refused ones are closed at once and counted by reason."""

    max_connections: Count = Field(
        default=0,
        description="connections open at once, whole instance; 0 = what the descriptor limit carries, said at start",
    )
    max_connections_per_source: Count = Field(
        default=0, description="connections open at once from one source, whole instance; 0 = no such limit"
    )
    connect_rate_per_source: PerSecond = Field(
        default=0.0, description="new connections per second from one source, whole instance; 0 = no such limit"
    )
    connect_burst_per_source: int = Field(
        default=10, ge=1, le=10_000_000, description="new connections that one source may make at once after a pause"
    )
    accept_rate: PerSecond = Field(
        default=0.0,
        description="new connections per second, whole instance, one second's worth at once after a pause; 0 = no "
        "such limit",
    )
    held_bytes: HeldBytes = Field(
        default=67_108_864,
        description="bytes that a worker holds at most, received and not yet taken by the other side, 1048576 or more; "
        "at the limit it receives no more than can be passed on at once; hellos and PROXY headers that have not come "
        "whole take at most a quarter as much, then the oldest are refused; whole ones that wait for a connect come on "
        "top; 0 = no limit",
    )
    source_prefix_v4: int = Field(
        default=32, ge=1, le=32, description="leading bits of an IPv4 address that make one source"
    )
    source_prefix_v6: int = Field(
        default=64, ge=1, le=128, description="leading bits of an IPv6 address that make one source"
    )


class AccessSettings(Section):
    """Which clients are let in at all, by their address; a refused one is closed at once."""

    allow: Annotated[tuple[Network, ...], Listed] = Field(
        default=(),
        description="networks that are let in, and nobody else: each like 10.0.0.0/8, 2001:db8::/32 or one address; "
        "empty = everybody",
    )
    deny: Annotated[tuple[Network, ...], Listed] = Field(
        default=(),
        description="networks that are not let in, also where allow has them; an address ::ffff:a.b.c.d is named by "
        "networks of IPv4 and of IPv6, here as in allow; empty = none",
    )


class DialSettings(Section):
    """Connecting to an upstream."""

    connect_timeout: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds that each upstream address has to answer a connect",
    )
    timeout: Duration = Field(
        default=15.0,
        description="seconds that one connection may spend on connecting, all upstream addresses together, from its "
        "first connect on; waits for dial.rate between two connects count, the wait before the first does not; 0 = off",
    )
    rate: PerSecond = Field(
        default=0.0,
        description="connects per second, whole instance, a tenth of a second's worth at once after a pause; further "
        "connections wait for their turn; 0 = no limit",
    )
    queue: Count = Field(default=1000, description="connections that may wait for dial.rate, whole instance")
    queue_timeout: Duration = Field(
        default=10.0, description="seconds that a connection may wait for dial.rate; who would wait longer is refused"
    )
    source_addresses: Annotated[tuple[SourceAddress, ...], Listed] = Field(
        default=(),
        description="this machine's addresses to dial from, each with its own ports towards an upstream address; "
        "empty = the kernel's choice",
    )


class DnsSettings(Section):
    """Resolving the upstreams' names."""

    nameservers: Annotated[tuple[Nameserver, ...], Listed] = Field(
        default=(),
        description="servers to ask, each IP, IP:port or [IPv6]:port (port 53 if none), without a search list; empty = "
        "the system's, with its search list",
    )
    min_ttl: Annotated[float, Field(ge=1, le=31_536_000, allow_inf_nan=False)] = Field(
        default=5.0, description="seconds that an answer serves at least, whatever its TTL"
    )
    max_ttl: Annotated[float, Field(ge=1, le=31_536_000, allow_inf_nan=False)] = Field(
        default=300.0, description="seconds after which an answer is asked for again, whatever its TTL"
    )
    hold: Duration = Field(
        default=3600.0, description="seconds that the last good answer goes on serving while the name does not resolve"
    )


class HealthCheckSettings(Section):
    """Checking the upstreams' addresses by connecting to each now and then; nothing is sent."""

    interval: Duration = Field(default=5.0, description="seconds between two checks of an address, 0 = no checks")
    rise: int = Field(default=2, ge=1, le=1000, description="successful checks in a row that bring an address up")
    fall: int = Field(
        default=3, ge=1, le=1000, description="failed checks, or dials of a worker, in a row that take an address out"
    )


class TimeoutSettings(Section):
    """When a connection is given up."""

    client_hello: Duration = Field(
        default=5.0,
        description="seconds that a client has for its PROXY header and TLS hello, where a listener asks for them; "
        "0 = off",
    )
    idle: Duration = Field(default=3600.0, description="seconds a connection may be silent, 0 = off")
    half_close: Duration = Field(
        default=300.0, description="seconds a connection may be silent after one side has ended its direction, 0 = off"
    )
    max_age: Duration = Field(
        default=0.0,
        description="seconds after which a connection is closed, so that load evens out after a scale-out; where very "
        "many are of one age, the last of them up to drain.window later; 0 = no limit",
    )
    max_age_jitter: float = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="part of max_age by which each connection lives shorter, at random, lest they end together",
    )


class TcpSettings(Section):
    """Kernel options of the sockets on both sides; see tcp(7)."""

    keepalive_idle: int = Field(
        default=60,
        ge=0,
        le=32_767,
        description="seconds of silence before the first keepalive probe, 0 = keepalive off",
    )
    keepalive_interval: int = Field(default=15, ge=1, le=32_767, description="seconds between keepalive probes")
    keepalive_count: int = Field(
        default=4, ge=1, le=127, description="unanswered keepalive probes after which a peer is lost"
    )
    user_timeout: Annotated[float, Field(ge=0, le=2_147_483, allow_inf_nan=False)] = Field(
        default=30.0,
        description="seconds without an answer after which a peer that has data to acknowledge is lost, 0 = off; one "
        "that answers may read as slowly as it likes",
    )


class DrainSettings(Section):
    """Taking the instance out of service."""

    announce: Duration = Field(
        default=15.0,
        description="seconds that a drain is not ready and still accepts, for the load balancer to notice: more than "
        "its probes' interval times their threshold",
    )
    window: Duration = Field(
        default=60.0, description="seconds over which established connections are then closed evenly, oldest first"
    )


class SupervisionSettings(Section):
    """Watching the workers. One that crashes is replaced in any case."""

    hang_timeout: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=10.0,
        description="seconds that a worker's loop may be silent before it is killed and replaced, 0 = never",
    )


class AdminSettings(Section):
    """The admin port: health, metrics and status. For operators and Prometheus, not for the public."""

    bind: BindOrOff = Field(
        default="127.0.0.1:8414",
        description="IPv4:port or [IPv6]:port; port 0 = the kernel's choice, said at start; empty = off",
    )
    hosts: Annotated[tuple[HostName, ...], Listed] = Field(
        default=(),
        description="names, without a port, under which a browser may use the port, besides addresses and localhost; "
        "a page of any other name is refused, wherever that name points to",
    )


class HealthSettings(Section):
    """The health port: /livez, /readyz and /healthz only, to be opened to the load balancer."""

    bind: BindOrOff = Field(
        default="0.0.0.0:8080",
        description="IPv4:port or [IPv6]:port; port 0 = the kernel's choice, said at start; empty = off",
    )


class AzureSettings(Section):
    """What the platform tells a virtual machine about itself."""

    scheduled_events: bool = Field(
        default=False,
        description="watch Azure Scheduled Events, and drain when this machine is about to be evicted, ended or "
        "rebooted",
    )
    metadata_url: Url = Field(
        default="http://169.254.169.254", description="where the instance metadata service answers"
    )


class LogSettings(Section):
    """What is logged, and in which form."""

    format: Literal["json", "console"] = Field(
        default="json", description='"json" = one object per line, "console" = for people at a terminal'
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least severity that is logged; the access log does not depend on it"
    )
    access: bool = Field(default=True, description="one line for each connection when it ends")


class Listener(Section):
    """One service: where clients connect, and where their connections are passed on to."""

    name: ListenerName = Field(description="name in logs and metrics, unique: 1 to 32 of a-z, 0-9, - and _")
    bind: Annotated[tuple[Bind, ...], Listed] = Field(
        min_length=1, description="addresses to listen on, each IPv4:port or [IPv6]:port; port 0 = the kernel's choice"
    )
    upstream: Annotated[tuple[Upstream, ...], Listed] = Field(
        min_length=1,
        description="where to connect, each host:port, IPv4:port or [IPv6]:port; names are resolved, those with a dot "
        "at the end (hub.example.:443) without a search list",
    )
    sni: Annotated[tuple[ServerName, ...], Listed] = Field(
        default=(),
        description="names that TLS clients may ask for in their first hello, each exact or *.suffix; what is not TLS, "
        "or names none of them, is refused; what comes after that hello passes unread; empty = everything does",
    )
    proxy_protocol: Literal["off", "accept", "require"] = Field(
        default="off",
        description='PROXY protocol from clients: "require" = who sends no header is refused, "accept" = with or '
        "without one; set it only where nobody but a trusted proxy can connect: a header may claim any address",
    )
    send_proxy_protocol: Literal["off", "v1", "v2"] = Field(
        default="off", description="PROXY protocol towards the upstream, by version; it has to expect it"
    )
    max_connections: Count = Field(
        default=0, description="connections open at once through this listener, whole instance; 0 = no limit of its own"
    )
