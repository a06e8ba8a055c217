"""The tables of listeners and their routes: where clients connect, and where their connections go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from relay.settings.tables import AccessSettings, HealthCheckSettings, TimeoutSettings
from relay.settings.values import (
    Bind,
    Count,
    Duration,
    InARow,
    Listed,
    ListenerName,
    Network,
    Part,
    PerSecond,
    RouteName,
    Section,
    ServerName,
    ShorthandUpstream,
    Upstream,
)


def _inherited(table: type[Section], name: str) -> Any:
    """The field of a listener's own table that takes the place of the instance's: None, or not given, inherits it."""
    return Field(default=None, description=table.model_fields[name].description)


class ListenerHealthCheck(Section):
    """Checks of this listener's upstreams, those of its routes included. Keys given replace those of [health_check].

    An upstream, host:port, has one health check: to give it different ones in two listeners is a mistake.
    """

    interval: Duration | None = _inherited(HealthCheckSettings, "interval")
    rise: InARow | None = _inherited(HealthCheckSettings, "rise")
    fall: InARow | None = _inherited(HealthCheckSettings, "fall")
    tls: bool | None = _inherited(HealthCheckSettings, "tls")


class ListenerTimeouts(Section):
    """Timeouts of this listener's connections, those of its routes included. Keys given replace those of [timeouts].

    A reload applies idle and half_close at once, to established connections too. Connections of a listener that a
    reload removes get those of [timeouts].
    """

    client_hello: Duration | None = _inherited(TimeoutSettings, "client_hello")
    idle: Duration | None = _inherited(TimeoutSettings, "idle")
    half_close: Duration | None = _inherited(TimeoutSettings, "half_close")
    max_age: Duration | None = _inherited(TimeoutSettings, "max_age")
    max_age_jitter: Part | None = _inherited(TimeoutSettings, "max_age_jitter")


class ListenerAccess(Section):
    """Which clients may connect to this listener. Keys given replace those of [access]; access.deny always holds."""

    allow: Annotated[tuple[Network, ...], Listed] | None = _inherited(AccessSettings, "allow")
    deny: Annotated[tuple[Network, ...], Listed] | None = Field(
        default=None,
        description="networks whose clients are refused here, besides those of access.deny, which always holds; empty "
        "= no further ones",
    )


class RouteSettings(Section):
    """What the routes of a listener and those of the short form have in common; see the two."""

    name: RouteName = Field(
        description="name in logs and metrics, unique among the routes of a listener: 1 to 64 characters of a-z, 0-9, "
        "-, _ and .; routes of one name in several listeners share one rate"
    )
    sni: Annotated[tuple[ServerName, ...], Listed] = Field(
        min_length=1,
        description="server names of this route in a TLS client's first hello, each exact or *.suffix, which matches "
        "at any depth and not the suffix itself; of the routes that match, the one written first is taken",
    )
    rate: PerSecond = Field(
        default=0.0,
        description="most connects per second of all routes with this name, over all listeners and workers; further "
        "ones wait as for dial.rate, in a queue of their own, and do not count there; 0 = no limit but dial.rate",
    )
    optional: bool = Field(
        default=False,
        description="true = while no name of upstream resolves, the route is off, as if it were not written: no "
        "metric, no reason in /readyz, no check, one line of log",
    )


class Route(RouteSettings):
    """One route of a listener: TLS connections that ask for certain names, and the upstream that they are passed on to.

    A connection of a route waits for the whole hello, for at most timeouts.client_hello.
    """

    upstream: Annotated[tuple[Upstream, ...], Listed] = Field(
        min_length=1, description="where to connect, each host:port, IPv4:port or [IPv6]:port, as for a listener"
    )
    backup: Annotated[tuple[Upstream, ...], Listed] = Field(
        default=(),
        description="where to connect while every upstream of the route is down; checked like those, and left once one "
        "of those is up again; established connections stay where they are; empty = nowhere",
    )

    @property
    def destinations(self) -> tuple[str, ...]:
        """All that the route may connect to."""
        return (*self.upstream, *self.backup)


class ShortRoute(RouteSettings):
    """One route of the short form, for its listeners https, mqtt and amqp, to the same port of the hosts given here.

    With `upstream` at the top level, or in place of it: then other names are refused. Not with [[listeners]].
    """

    upstream: Annotated[tuple[ShorthandUpstream, ...], Listed] = Field(
        min_length=1, description="hosts to connect to, without ports"
    )
    backup: Annotated[tuple[ShorthandUpstream, ...], Listed] = Field(
        default=(), description="hosts, without ports, to connect to while every upstream of the route is down"
    )
    listeners: Annotated[tuple[str, ...], Listed] = Field(
        default=(), description='listeners that have this route, of "https", "mqtt" and "amqp"; empty = all three'
    )


class Listener(Section):
    """One listener: where clients connect, and which upstream their connections are passed on to.

    Connections that a route of the listener matches go to that route's upstream instead.
    """

    name: ListenerName = Field(
        description="name in logs and metrics, unique among the listeners: 1 to 32 characters of a-z, 0-9, - and _"
    )
    bind: Annotated[tuple[Bind, ...], Listed] = Field(
        min_length=1,
        description="addresses to listen on, each IPv4:port or [IPv6]:port; port 0 = a free port, which is logged at "
        "start",
    )
    upstream: Annotated[tuple[Upstream, ...], Listed] = Field(
        default=(),
        description="where to connect, each host:port, IPv4:port or [IPv6]:port; names are resolved, those with a dot "
        "at the end (hub.example.:443) without the search list; may be left out where routes are set, and then what no "
        "route matches is refused",
    )
    sni: Annotated[tuple[ServerName, ...], Listed] = Field(
        default=(),
        description="server names, besides those of routes, that a TLS client may ask for in its first hello, each "
        "exact or *.suffix; they go to upstream; a connection that is not TLS, or asks for another name or none, is "
        "refused; bytes after the hello are passed on unread; empty = no filter: all that no route matches goes to "
        "upstream, and without routes nothing is read",
    )
    proxy_protocol: Literal["off", "accept", "require"] = Field(
        default="off",
        description='PROXY protocol header from clients: "off" = none is read, "accept" = optional, "require" = '
        "a connection without one is refused; a header may claim any address: set trusted_proxies, or see to it that "
        "none but a trusted proxy can connect",
    )
    trusted_proxies: Annotated[tuple[Network, ...], Listed] = Field(
        default=(),
        description='networks of the proxies whose PROXY headers count; with "require" a connection from elsewhere is '
        'refused at once, with "accept" it is one of a plain client, and refused if it sends a header; empty = every '
        "sender's header counts",
    )
    send_proxy_protocol: Literal["off", "v1", "v2"] = Field(
        default="off",
        description="PROXY protocol header to the upstream, by version; the upstream must expect it",
    )
    max_connections: Count = Field(
        default=0,
        description="most connections open at once through this listener, over all workers; 0 = limits.max_connections "
        "alone applies",
    )
    access: ListenerAccess = ListenerAccess()
    timeouts: ListenerTimeouts = ListenerTimeouts()
    health_check: ListenerHealthCheck = ListenerHealthCheck()
    routes: Annotated[tuple[Route, ...], Listed] = Field(
        default=(),
        description="one table for each route, in the order in which they are tried",
    )

    @property
    def destinations(self) -> tuple[str, ...]:
        """All that the listener may connect to, host:port each; those of its routes too."""
        return (*self.upstream, *(text for route in self.routes for text in route.destinations))
