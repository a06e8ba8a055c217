"""Warnings about settings that are valid but rarely intended: one line each, naming the setting.

`relay check` prints them, `relay run` and a reload log them; none changes what relay does. They depend on the settings
alone; warnings that depend on the machine are in `prepare`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address
from typing import TypeVar

from relay.address import parse_hostport
from relay.settings.inherited import access, timeouts
from relay.settings.model import Listener, Settings
from relay.settings.tables import AccessSettings

# Domains of IoT Hubs in Azure's clouds: azure-devices.net (global), .us (US Government), .cn (21Vianet).
HUB_DOMAINS = ("azure-devices.net", "azure-devices.us", "azure-devices.cn")
MQTT_PORT = 8883
# The longest keep-alive that an IoT Hub grants an MQTT client (Microsoft Learn, "Communicate with an IoT hub using the
# MQTT protocol", default keep-alive timeout): such a client may send nothing for that long.
LONGEST_KEEP_ALIVE = 1767.0  # seconds
MAPPED_BITS = 96  # prefix length of ::ffff:0:0/96, RFC 4291 section 2.5.5.2
SHOWN = 5  # networks that one warning lists, so that a list of thousands does not fill the log

Network = TypeVar("Network", IPv4Network, IPv6Network)


def settings_warnings(settings: Settings) -> list[str]:
    """The warnings about `settings`, in the order of the configuration reference."""
    return [
        *settings.deprecated,
        *_access(settings),
        *_source_addresses(settings),
        *_timeouts(settings),
        *_ports(settings),
        *_hubs(settings),
        *_backups(settings),
    ]


def _access(settings: Settings) -> Iterator[str]:
    yield from _dead(settings.access, "access")
    for item in settings.listeners:
        if item.access.allow is not None or item.access.deny is not None:
            yield from _dead(access(settings.access, item), f"listeners.{item.name}.access")


def _dead(lists: AccessSettings, where: str) -> Iterator[str]:
    """Networks of `allow` that `deny` covers completely; `deny` wins."""
    allow, deny = _by_version(lists.allow), _by_version(lists.deny)
    dead = [*map(str, _covered(allow[0], deny[0])), *map(str, _covered(allow[1], deny[1]))]
    if dead and len(dead) == len(lists.allow):
        yield f"{where}.deny: covers all of {where}.allow, and deny wins: no client is admitted"
    elif dead:
        shown = ", ".join(dead[:SHOWN]) + (f" and {len(dead) - SHOWN} more" if len(dead) > SHOWN else "")
        yield f"{where}.allow: {shown}: wholly in {where}.deny, which wins: no client from there is admitted"


def _by_version(texts: Sequence[str]) -> tuple[list[IPv4Network], list[IPv6Network]]:
    """The IPv4 networks and the IPv6 networks; one within ::ffff:0:0/96 (IPv4-mapped) is an IPv4 network."""
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for text in texts:
        if ":" not in text:
            v4.append(IPv4Network(text))
            continue
        network = IPv6Network(text)
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= MAPPED_BITS:
            v4.append(IPv4Network((mapped, network.prefixlen - MAPPED_BITS)))
        else:
            v6.append(network)
    return v4, v6


def _covered(allow: list[Network], deny: list[Network]) -> list[Network]:
    """The networks of `allow` that the networks of `deny` cover, alone or together."""
    # After collapsing, only one network can cover another: the last one whose address is not above the other's.
    collapsed = sorted(collapse_addresses(deny))
    found = []
    for network in allow:
        at = bisect_right(collapsed, network.network_address, key=lambda denied: denied.network_address) - 1
        if at >= 0 and network.subnet_of(collapsed[at]):
            found.append(network)
    return found


def _source_addresses(settings: Settings) -> Iterator[str]:
    sources = [ip_address(text) for text in settings.dial.source_addresses]
    hosts = dict.fromkeys(
        parse_hostport(text, allow_name=True)[0] for item in settings.listeners for text in item.destinations
    )
    upstreams = [_literal(host) for host in hosts]  # None for a name: its addresses may be of any family
    for position, source in enumerate(sources):
        where = f"dial.source_addresses: {source}"
        if source in sources[:position]:
            yield f"{where}: given twice; the second adds no source ports"
        elif source.is_unspecified or source.is_multicast:
            yield f"{where}: not an address that an upstream can answer; set one of this machine's, see `ip address`"
        elif upstreams and all(address is not None and address.version != source.version for address in upstreams):
            yield f"{where}: unused: no upstream is IPv{source.version}"
        elif source.is_loopback and (far := _not_loopback(list(hosts), source.version)):
            yield f"{where}: loopback, from which {far} cannot be reached: every dial from it fails"


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _not_loopback(hosts: list[str], version: int) -> str:
    """The first upstream that cannot be reached from loopback, or an empty string."""
    for host in hosts:
        address = _literal(host)
        if address is None and host != "localhost" and not host.endswith(".localhost"):
            return host
        if address is not None and address.version == version and not address.is_loopback:
            return host
    return ""


def _timeouts(settings: Settings) -> Iterator[str]:
    tcp = settings.tcp
    silent: dict[str, list[str]] = {}  # names of the listeners, by the setting that they have it from
    short: dict[tuple[str, float], list[str]] = {}
    endless: dict[str, None] = {}
    for item in settings.listeners:
        of = timeouts(settings.timeouts, item)
        if not of.client_hello and _preread(item):
            silent.setdefault(_timeout(item, "client_hello"), []).append(item.name)
        if 0 < of.idle < LONGEST_KEEP_ALIVE and any(_is_mqtt(text) for text in item.destinations):
            short.setdefault((_timeout(item, "idle"), of.idle), []).append(item.name)
        if not of.idle and not tcp.keepalive_idle:
            endless[_timeout(item, "idle")] = None
    for where, names in silent.items():
        yield (
            f"{where}: 0, so a client of {_listeners(names)} that sends nothing holds its connection "
            "for ever: set a number of seconds"
        )
    for (where, seconds), names in short.items():
        yield (
            f"{where}: {seconds:g} s is less than {LONGEST_KEEP_ALIVE:g}, the longest keep-alive of an "
            f"MQTT client: quiet devices of {_listeners(names)} are cut off"
        )
    for where in endless:
        yield f"{where} and tcp.keepalive_idle: both 0, so a peer that vanishes holds its connection for ever"


def _timeout(item: Listener, name: str) -> str:
    """The setting from which a listener has a timeout: its own, or the instance's."""
    return f"timeouts.{name}" if getattr(item.timeouts, name) is None else f"listeners.{item.name}.timeouts.{name}"


def _preread(item: Listener) -> bool:
    """Whether a client of the listener has to send something before it is connected. Optional routes may be off."""
    return bool(item.sni or item.proxy_protocol != "off" or any(not route.optional for route in item.routes))


def _is_mqtt(upstream: str) -> bool:
    return parse_hostport(upstream, allow_name=True)[1] == MQTT_PORT


def _ports(settings: Settings) -> Iterator[str]:
    admin, health = settings.admin.bind, settings.health.bind
    if admin and not ip_address(parse_hostport(admin, allow_name=False)[0]).is_loopback:
        yield (
            f"admin.bind: {admin} is open to the network: anyone who reaches it can drain and reload this relay; bind "
            "127.0.0.1 or [::1], or restrict it with a firewall"
        )
    if not admin and not health:
        yield "admin.bind and health.bind: both empty, so neither a load balancer nor you can check relay's health"


def _hubs(settings: Settings) -> Iterator[str]:
    """Settings that do not work with an IoT Hub: several hubs in one listener, and the PROXY protocol."""
    pairs: dict[tuple[str, ...], list[str]] = {}  # names of the listeners with several hubs, by those hubs
    headers: dict[str, list[str]] = {}  # names of the listeners that send a PROXY header, by hub
    for item in settings.listeners:
        for texts in (item.upstream, *(route.upstream for route in item.routes)):
            hubs = _hubs_of(texts)
            if len(hubs) > 1:
                pairs.setdefault(tuple(hubs.values()), []).append(item.name)
        hubs = _hubs_of(item.destinations)
        if hubs and item.send_proxy_protocol != "off":
            headers.setdefault(next(iter(hubs.values())), []).append(item.name)
    for hosts, names in pairs.items():
        yield (
            f"{_listeners(names)}.upstream: {', '.join(hosts)} are {len(hosts)} IoT Hubs, and a connection goes to any "
            "of them: many devices reach one that does not know them; give each hub a route of its own"
        )
    for host, names in headers.items():
        yield (
            f"{_listeners(names)}.send_proxy_protocol: {host} is an IoT Hub, which refuses a PROXY header: set it to "
            '"off"'
        )


def _hubs_of(texts: Sequence[str]) -> dict[str, str]:
    """The IoT Hubs among upstreams: one host for each hub, by the hub's name.

    A hub is identified by its first label and its cloud: hub.privatelink.azure-devices.net is hub.azure-devices.net.
    """
    found: dict[str, str] = {}
    for text in texts:
        host = parse_hostport(text, allow_name=True)[0].rstrip(".")
        for domain in HUB_DOMAINS:
            if host.endswith(f".{domain}"):
                found.setdefault(f"{host.partition('.')[0]}.{domain}", host)
    return found


def _backups(settings: Settings) -> Iterator[str]:
    """Backups that nothing leads to, since no upstream is ever found down."""
    names = [f"{item.name}.{route.name}" for item in settings.listeners for route in item.routes if route.backup]
    if names and not settings.health_check.interval:
        yield (
            f"health_check.interval: 0, so nothing finds out that an upstream is down, and the backup of {names[0]} is "
            "used only while no name of its upstream resolves"
        )


def _listeners(names: list[str]) -> str:
    return f"listeners.{names[0]}" if len(names) == 1 else f"listeners.{{{', '.join(names)}}}"
