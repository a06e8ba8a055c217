"""A device talks to the hub or to nobody: other names and authorities are refused; a cut connection comes back."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from relay.demo import certificates, telemetry
from relay.demo.devices import CONNECTED, RETRYING, Device, HttpsDevice, Target, trust
from relay.demo.mqtt import MqttDevice
from tests.demo.conftest import DEADLINE, RecordedHub, wait_until

KINDS = [MqttDevice, HttpsDevice]


class Forwarder:
    """Passes bytes on to the hub, as the relay would, and can be cut."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset what is connected and refuse what comes, until it is started again."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await self._server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        self._writers += [writer, hub_writer]

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while chunk := await source.read(65536):
                    sink.write(chunk)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, hub_writer), copy(hub_reader, writer))


async def refused(device: Device, recorded: RecordedHub, why: str) -> None:
    """Fails unless the device gives the connection up with `why`, before it has sent anything."""
    sending = asyncio.create_task(device.run(1, 0.01))
    try:
        await wait_until(lambda: device.state == RETRYING, "refusal")
        assert why in device.error
        assert not sending.done()
        assert device.account.acknowledged == 0
        assert recorded.arrivals == []
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await device.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_device_refuses_a_hub_whose_certificate_has_another_name(
    recorded: RecordedHub, kind: type[Device]
) -> None:
    device = kind("device-1", recorded.target(kind.protocol, hub="other-hub.azure-devices.net"))
    await refused(device, recorded, "certificate is not valid for 'other-hub.azure-devices.net'")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_device_refuses_a_hub_of_another_authority(
    recorded: RecordedHub, kind: type[Device], tmp_path: Path
) -> None:
    stranger = certificates.create(tmp_path, telemetry.HUB_NAME)
    port = recorded.hub.ports[kind.protocol]
    device = kind("device-1", Target(telemetry.HUB_NAME, "127.0.0.1", port, trust(str(stranger.authority))))
    await refused(device, recorded, "certificate verify failed")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_device_that_is_cut_off_comes_back_and_loses_nothing(recorded: RecordedHub, kind: type[Device]) -> None:
    path = Forwarder(recorded.hub.ports[kind.protocol])
    await path.start()
    device = kind("device-1", recorded.target(kind.protocol, port=path.port), keep=True)
    sending = asyncio.create_task(device.run(40, 0.02))
    try:
        await wait_until(lambda: device.account.acknowledged >= 5, "fifth acknowledgement")
        await path.cut()
        await wait_until(lambda: device.state == RETRYING, "retry")
        await path.start()
        await asyncio.wait_for(sending, DEADLINE)
        assert device.state == CONNECTED
        assert device.account.connections >= 2
        assert device.account.digests is not None
        sent = device.account.digests.keys()
        await wait_until(lambda: {one.key for one in recorded.arrivals} == sent, "arrival of every message")
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await device.close()
        await path.cut()


async def test_closing_a_device_that_never_got_through_takes_no_longer_than_its_back_off(
    recorded: RecordedHub,
) -> None:
    path = Forwarder(0)
    await path.start()
    await path.cut()  # a port that refuses
    device = MqttDevice("device-1", recorded.target(telemetry.MQTT, port=path.port))
    sending = asyncio.create_task(device.run(1, 0.01))
    await wait_until(lambda: device.state == RETRYING, "refusal")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await asyncio.wait_for(device.close(), DEADLINE)
    assert device.account.connections == 0
