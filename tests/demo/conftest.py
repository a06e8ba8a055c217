"""Fixtures of the demo's tests: certificates, a running stand-in hub, and a wait with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.demo import certificates, telemetry
from relay.demo.certificates import Certificates
from relay.demo.devices import Target, trust
from relay.demo.hub_process import Hub

DEADLINE = 20.0  # seconds; a state that takes longer will not come


class RecordedHub:
    """A hub process and what it recorded."""

    def __init__(self, directory: Path, made: Certificates) -> None:
        self.certificates = made
        self.arrivals: list[telemetry.Arrival] = []
        self.hub = Hub(directory, made.server, self.arrivals.append)

    def target(self, protocol: str, *, hub: str = telemetry.HUB_NAME, port: int = 0) -> Target:
        """Straight to the hub, or to `port`, under the name `hub`."""
        return Target(hub, "127.0.0.1", port or self.hub.ports[protocol], trust(str(self.certificates.authority)))


@pytest.fixture(scope="session")
def made_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.create(tmp_path_factory.mktemp("certificates"), telemetry.HUB_NAME)


@pytest.fixture
async def recorded(tmp_path: Path, made_certificates: Certificates) -> AsyncIterator[RecordedHub]:
    recorded = RecordedHub(tmp_path, made_certificates)
    await recorded.hub.start()
    yield recorded
    assert await recorded.hub.stop(), "the hub had to be killed"


async def wait_until(true: Callable[[], bool], what: str) -> None:
    """Returns once `true()`, fails after DEADLINE."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not true():  # noqa: ASYNC110 - what it waits for happens in other processes and threads
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"within {DEADLINE:.0f} s there was no {what}")
