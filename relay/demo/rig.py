"""All parts of the demo: certificates, hub, relay and devices, started one after the other and ended in reverse.

It prints each step. `once` and `live` decide what the devices do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from relay.demo import certificates, telemetry
from relay.demo.devices import Device, HttpsDevice, Target, trust
from relay.demo.hub_process import Hub
from relay.demo.mqtt import MqttDevice
from relay.demo.process import DemoError, tail
from relay.demo.relay_process import WORKERS, Relay
from relay.supervisor.admin.status_schema import RelayStatus

MQTT_DEVICES = 6
HTTPS_DEVICES = 3


def say(text: str) -> None:
    """Print a line of progress, flushed at once."""
    print(text, flush=True)


class Rig:
    """The parts of the demo, with their files below one directory. `close` may be called at any time."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: bool = False,
        on_arrival: Callable[[telemetry.Arrival], None] | None = None,
    ) -> None:
        self.directory = directory
        self.certificates = certificates.create(directory, telemetry.HUB_NAME)
        self.hub = Hub(directory, self.certificates.server, on_arrival)
        self.relay: Relay | None = None
        self.devices: Sequence[Device] = []
        self._keep = keep

    async def start(self) -> RelayStatus:
        """Start the hub, the relay and the devices; returns the relay's first status. Raises DemoError."""
        say(f"everything runs on 127.0.0.1, unprivileged, with its files below {self.directory}")
        say(f"certificates: an authority made just now, and from it one for the name {telemetry.HUB_NAME}")
        await self.hub.start()
        ports = self.hub.ports
        say(
            f"stand-in hub: MQTT over TLS on 127.0.0.1:{ports[telemetry.MQTT]},"
            f" HTTPS on 127.0.0.1:{ports[telemetry.HTTPS]} (pid {self.hub.pid})"
        )
        say(telemetry.AMQP_NOTE)
        self.relay = Relay(self.directory, ports)
        status = await self.relay.start()
        listens = ", ".join(f"{name} on 127.0.0.1:{port}" for name, port in self.relay.ports.items())
        say(f"relay: {listens} (pid {status['pid']}, {WORKERS} workers, engine {status['engine']}, ready)")
        self.devices = self._make_devices(self.relay)
        say(
            f"devices: {MQTT_DEVICES} over MQTT, {HTTPS_DEVICES} over HTTPS; to them {telemetry.HUB_NAME} is\n"
            "  where the relay listens, and their TLS ends at the hub"
        )
        return status

    def check(self) -> None:
        """Raise DemoError if the hub or the relay has ended unexpectedly."""
        if not self.hub.running:
            raise DemoError(f"the stand-in hub has ended; the end of its log:\n{tail(self.hub.log)}")
        if self.relay is not None and not self.relay.running:
            raise DemoError(f"the relay has ended; the end of its log:\n{tail(self.relay.log)}")

    async def close_devices(self) -> None:
        """Close the connections of all devices."""
        await asyncio.gather(*(device.close() for device in self.devices))

    async def close(self) -> list[str]:
        """End devices, relay and hub; returns the names of those that did not end when asked and were killed."""
        await self.close_devices()
        killed = []
        if self.relay is not None and not await self.relay.stop():
            killed.append("the relay")
        if not await self.hub.stop():
            killed.append("the stand-in hub")
        return killed

    def _make_devices(self, relay: Relay) -> list[Device]:
        authority = trust(str(self.certificates.authority))
        kinds: list[tuple[type[Device], int]] = [(MqttDevice, MQTT_DEVICES), (HttpsDevice, HTTPS_DEVICES)]
        return [
            kind(
                f"{kind.protocol}-{number}",
                Target(telemetry.HUB_NAME, "127.0.0.1", relay.ports[kind.protocol], authority),
                keep=self._keep,
            )
            for kind, count in kinds
            for number in range(1, count + 1)
        ]
