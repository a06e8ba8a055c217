"""The short form: `upstream` and `routes` at the top level, and the three listeners that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from relay.address import format_hostport
from relay.core.routes import Names
from relay.settings.listeners import Listener, Route, ShortRoute

# The listeners of the short form, by name and port. The ports are an IoT Hub's (Azure, "Choose a device communication
# protocol"): HTTPS and both WebSocket flavours 443, MQTT 8883, AMQP 5671.
PORTS: Mapping[str, int] = {"https": 443, "mqtt": 8883, "amqp": 5671}
# Devices that speak TLS 1.3 ask for a name of their own (Microsoft Learn, "Transport Layer Security (TLS) support in
# IoT Hub"): hub.azure-devices.net is hub.device.azure-devices.net for them. Azure's global cloud alone has it.
HUB_DOMAIN = ".azure-devices.net"
DEVICE = "device"
LONGEST_HUB = 50  # characters of an IoT Hub's name (Microsoft Learn, "Naming rules and restrictions")


def listeners_of(upstream: Sequence[str], routes: Sequence[ShortRoute]) -> tuple[Listener, ...]:
    """The listeners https, mqtt and amqp, each with the same hosts and routes at its port."""
    return tuple(
        Listener(
            name=name,
            bind=(f"0.0.0.0:{port}", f"[::]:{port}"),
            upstream=_at(upstream, port),
            routes=_routes(upstream, [route for route in routes if name in (route.listeners or PORTS)], port),
        )
        for name, port in PORTS.items()
    )


def _routes(upstream: Sequence[str], written: Sequence[ShortRoute], port: int) -> tuple[Route, ...]:
    """The routes of one listener: those that are written, then the implied ones of the hubs in `upstream`.

    An implied route is left out if a written one has its name, or takes the server name already.
    """
    found = [
        Route(
            name=route.name,
            sni=route.sni,
            upstream=_at(route.upstream, port),
            backup=_at(route.backup, port),
            rate=route.rate,
            optional=route.optional,
        )
        for route in written
    ]
    taken, names = Names([route.sni for route in written]), {route.name for route in written}
    for hub, host in _device_names(upstream):
        name, server_name = f"{hub}.{DEVICE}", host.removesuffix(".")
        if name not in names and taken.find(server_name) is None:
            names.add(name)
            found.append(Route(name=name, sni=(server_name,), upstream=_at([host], port), optional=True))
    return tuple(found)


def _device_names(upstream: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name of each IoT Hub in `upstream`, and its host for devices; complete (a dot at its end) if the hub's is."""
    for host in upstream:
        hub = host.removesuffix(".").removesuffix(HUB_DOMAIN)
        if hub != host.removesuffix(".") and "." not in hub and 0 < len(hub) <= LONGEST_HUB:
            yield hub, f"{hub}.{DEVICE}{HUB_DOMAIN}{'.' if host.endswith('.') else ''}"


def _at(hosts: Sequence[str], port: int) -> tuple[str, ...]:
    return tuple(format_hostport(host, port) for host in hosts)
