"""The stand-in hub takes telemetry over real TLS, records it, refuses what is not telemetry, and ends with its parent.

Devices connect to it directly here; the relay has no part in these tests.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from relay.demo import telemetry
from relay.demo.certificates import Certificates
from relay.demo.devices import CONNECTED, Device, HttpsDevice, RelayResolver
from relay.demo.hub_process import Hub
from relay.demo.mqtt import MqttDevice
from relay.demo.process import DemoError
from tests.demo.conftest import DEADLINE, RecordedHub, wait_until


@pytest.mark.parametrize("kind", [MqttDevice, HttpsDevice])
async def test_messages_of_a_device_are_recorded_byte_for_byte(recorded: RecordedHub, kind: type[Device]) -> None:
    device = kind("device-1", recorded.target(kind.protocol), keep=True)
    try:
        await asyncio.wait_for(device.run(3, 0.01), DEADLINE)
        await wait_until(lambda: len(recorded.arrivals) == 3, "third arrival")
        assert {one.key: one.digest for one in recorded.arrivals} == device.account.digests
        assert {one.protocol for one in recorded.arrivals} == {kind.protocol}
        assert recorded.hub.received == {kind.protocol: 3}
        assert (device.state, device.account.acknowledged, device.account.connections) == (CONNECTED, 3, 1)
        assert all(seconds > 0 for seconds in device.account.round_trips)
    finally:
        await device.close()


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"\xff", "not telemetry"),
        (b"[]", "not telemetry"),
        (b'{"deviceId": "device-2", "sequence": 1}', "telemetry of 'device-2' sent by 'device-1'"),
        (b'{"deviceId": "device-1", "sequence": true}', "not a whole number"),
    ],
)
async def test_a_post_that_is_not_the_devices_telemetry_is_refused_and_not_recorded(
    recorded: RecordedHub, payload: bytes, complaint: str
) -> None:
    target = recorded.target(telemetry.HTTPS)
    url = f"https://{target.hub}:{target.port}{telemetry.path('device-1')}"
    connector = aiohttp.TCPConnector(resolver=RelayResolver(target), ssl=target.authority)
    async with aiohttp.ClientSession(connector=connector) as http:
        async with http.post(url, data=payload) as refused:
            assert refused.status == 400
            assert complaint in await refused.text()
        async with http.post(url, data=telemetry.encode("device-1", 7, 20.0, 50.0)) as taken:
            assert taken.status == 204
    await wait_until(lambda: bool(recorded.arrivals), "arrival")
    assert [one.sequence for one in recorded.arrivals] == [7]


def test_the_hub_ends_when_its_parent_has_gone(made_certificates: Certificates) -> None:
    command = [sys.executable, "-m", "relay.demo.hub", str(made_certificates.server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b'"mqtt"' in process.stdout.readline()
        process.stdin.close()  # what the kernel does when a parent dies
        assert process.wait(DEADLINE) == 0


def test_the_hub_ends_on_sigterm(made_certificates: Certificates) -> None:
    command = [sys.executable, "-m", "relay.demo.hub", str(made_certificates.server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


async def test_a_hub_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    hub = Hub(tmp_path, tmp_path / "absent.pem")
    with pytest.raises(DemoError, match=r"(?s)did not start.*FileNotFoundError"):
        await hub.start()
    assert await hub.stop()
    assert not hub.running
