"""The settings of relay: their names, types, units, bounds and defaults, and how they are loaded.

The models below are the only place that says what may be set; the environment variables, `relay config`, the messages
and docs/configuration.md follow from them. Precedence: defaults, then the TOML file, then RELAY_… variables. Only what
is passed to `load` is read: no implicit file, no process environment, no global state. For the supervisor and the
commands; workers are handed plain values and never import this, for pydantic takes longer to import than they to start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.address import (
    format_hostport,
    parse_address,
    parse_host,
    parse_hostport,
    parse_network,
    parse_server_name,
)
from relay.settings_problems import Whole, field_problems
from relay.settings_render import render
from relay.settings_sources import EnvironSource, FileSource, build

__all__ = ["SHORTHAND_PORTS", "Listener", "Settings", "SettingsError", "load", "render"]

# What `upstream` stands for, name and port of each listener. The ports are an IoT Hub's (Azure, "Choose a device
# communication protocol"): HTTPS and both WebSocket flavours 443, MQTT 8883, AMQP 5671.
SHORTHAND_PORTS: Mapping[str, int] = {"https": 443, "mqtt": 8883, "amqp": 5671}

_NAME = re.compile(r"[a-z0-9_-]{1,32}")


def _bind(text: str) -> str:
    return format_hostport(*parse_hostport(text, allow_name=False))


def _bind_or_off(text: str) -> str:
    return _bind(text) if text else ""


def _upstream(text: str) -> str:
    host, port = parse_hostport(text, allow_name=True)
    if port == 0:
        raise ValueError("has port 0, which cannot be dialled")
    return format_hostport(host, port)


def _shorthand_upstream(text: str) -> str:
    if text.count(":") == 1 or "]:" in text:
        raise ValueError("has a port; upstream keeps the ports 443, 8883 and 5671: use [[listeners]] to choose others")
    return parse_host(text, allow_name=True)


def _nameserver(text: str) -> str:
    host, port = parse_address(text, default_port=53)
    if port == 0:
        raise ValueError("has port 0, which cannot be asked")
    return format_hostport(host, port)


def _listener_name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("is not 1 to 32 of a-z, 0-9, - and _")
    return text


# Bounds are far above what makes sense and below what breaks: kernel options take 32 bits, and a duration of more than
# a year is milliseconds by mistake, or "never", which is 0.
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Duration = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
Bind = Annotated[str, AfterValidator(_bind)]
BindOrOff = Annotated[str, AfterValidator(_bind_or_off)]
Upstream = Annotated[str, AfterValidator(_upstream)]
ShorthandUpstream = Annotated[str, AfterValidator(_shorthand_upstream)]
ServerName = Annotated[str, AfterValidator(parse_server_name)]
Network = Annotated[str, AfterValidator(parse_network)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
ListenerName = Annotated[str, AfterValidator(_listener_name)]
# Strict pydantic takes no list for a tuple, and TOML and JSON have nothing but lists. The items stay strict.
Listed = Strict(False)


class Section(BaseModel):
    """A table of settings: no unknown names, no conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LimitSettings(Section):
    """How many connections are let in. Refused ones are closed at once and counted by reason."""

    max_connections: Count = Field(
        default=0,
        description="connections open at once, whole instance; 0 = what the descriptor limit carries, said at start",
    )
    max_connections_per_source: Count = Field(
        default=0, description="connections open at once from one source, whole instance; 0 = no such limit"
    )
    held_bytes: int = Field(
        default=67_108_864,
        ge=0,
        le=1 << 40,
        description="bytes that a worker holds at most, received and not yet taken by the other side; at the limit it "
        "receives no more than can be passed on at once; 0 = no limit",
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
        default=(), description="networks that are not let in, also where allow has them; empty = none"
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


class DnsSettings(Section):
    """Resolving the upstreams' names."""

    nameservers: Annotated[tuple[Nameserver, ...], Listed] = Field(
        default=(),
        description="servers to ask, each IP, IP:port or [IPv6]:port (port 53 if none); empty = the system's",
    )


class TimeoutSettings(Section):
    """When a connection is given up."""

    client_hello: Duration = Field(
        default=5.0, description="seconds that a client has for its TLS hello on listeners that ask for one, 0 = off"
    )
    idle: Duration = Field(default=3600.0, description="seconds a connection may be silent, 0 = off")
    half_close: Duration = Field(
        default=300.0, description="seconds a connection may be silent after one side has ended its direction, 0 = off"
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
        description="seconds that data may wait for a peer that does not acknowledge it or takes none, 0 = off",
    )


class DrainSettings(Section):
    """Taking the instance out of service."""

    window: Duration = Field(
        default=60.0, description="seconds that established connections get to finish after SIGTERM; the rest is closed"
    )


class AdminSettings(Section):
    """The admin port: health, metrics and status. For operators and Prometheus, not for the public."""

    bind: BindOrOff = Field(
        default="127.0.0.1:9100",
        description="IPv4:port or [IPv6]:port; port 0 = the kernel's choice, said at start; empty = off",
    )


class HealthSettings(Section):
    """The health port: /livez, /readyz and /healthz only, to be opened to the load balancer."""

    bind: BindOrOff = Field(
        default="0.0.0.0:8080",
        description="IPv4:port or [IPv6]:port; port 0 = the kernel's choice, said at start; empty = off",
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
        min_length=1, description="where to connect, each host:port, IPv4:port or [IPv6]:port; names are resolved"
    )
    sni: Annotated[tuple[ServerName, ...], Listed] = Field(
        default=(),
        description="names that TLS clients may ask for, each exact or *.suffix; what is not TLS, or names none of "
        "them, is refused; empty = everything passes unread",
    )
    max_connections: Count = Field(
        default=0, description="connections open at once through this listener, whole instance; 0 = no limit of its own"
    )


class Settings(BaseSettings):
    """Everything that can be set, validated. Made by `load`, which also resolves the shorthand `upstream`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, strict=True)

    upstream: Annotated[tuple[ShorthandUpstream, ...], Listed] = Field(
        default=(),
        description=(
            "hosts without ports, short for [[listeners]] https 443, mqtt 8883, amqp 5671 to these hosts, same ports"
        ),
    )
    workers: int = Field(default=0, ge=0, le=256, description="worker processes, 0 = one per usable CPU")
    engine: Literal["auto", "ring", "stream"] = Field(
        default="auto",
        description='how workers move bytes: "ring" = io_uring, "stream" = uvloop, "auto" = ring where it works',
    )
    limits: LimitSettings = LimitSettings()
    access: AccessSettings = AccessSettings()
    dial: DialSettings = DialSettings()
    dns: DnsSettings = DnsSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    tcp: TcpSettings = TcpSettings()
    drain: DrainSettings = DrainSettings()
    admin: AdminSettings = AdminSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
    listeners: Annotated[tuple[Listener, ...], Listed] = Field(
        default=(),
        description="one table for each service; in the environment: a JSON list of objects",
    )


class SettingsError(Exception):
    """Settings that cannot be used. `problems` has one line for each mistake, naming the setting and what it may be."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(config: Path | None, environ: Mapping[str, str], *, require_listeners: bool = True) -> Settings:
    """The effective settings of the file `config`, if any, and of the RELAY_… variables in `environ`.

    `upstream` is always empty in the result: what it stood for is in `listeners`. There is at least one listener,
    unless `require_listeners` is false (for showing settings, not for running them). Raises SettingsError with all
    mistakes at once.
    """
    file, environment = FileSource(Settings, config), EnvironSource(Settings, environ)
    problems = [*file.problems, *environment.problems]
    settings: Settings | None = None
    try:
        settings = build(Settings, environment, file)
    except ValidationError as error:
        problems += field_problems(error, Settings, environment.variables)
    whole = Whole(Settings, file, environment)
    problems += whole.problems(SHORTHAND_PORTS, require_listeners=require_listeners)
    if problems or settings is None:
        raise SettingsError(problems)
    if not settings.upstream:
        return settings
    listeners = tuple(
        Listener(
            name=name,
            bind=(f"0.0.0.0:{port}", f"[::]:{port}"),
            upstream=tuple(format_hostport(host, port) for host in settings.upstream),
        )
        for name, port in SHORTHAND_PORTS.items()
    )
    return settings.model_copy(update={"upstream": (), "listeners": listeners})
