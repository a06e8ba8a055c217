"""Workers that were taken over: whatever they write where the supervisor reads, it lives on and says what is so."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.clients import connect, echoes, exchange
from tests.harness import Relay, Start
from tests.observe import alive
from tests.relay_toml import listener, settings
from tests.upstreams import Echo


@pytest.fixture
def pair(echo: Echo, start: Start) -> Relay:
    """A relay of two workers that may die."""
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors |= {"worker died", "worker killed"}
    return relay


def shared(pid: int, name: str) -> int:
    """A descriptor of this process for a file that a worker shares."""
    found = [path for path in Path(f"/proc/{pid}/fd").iterdir() if name in str(path.readlink())]
    return os.open(found[0], os.O_RDWR)


@pytest.mark.parametrize("name", ["relay-table", "relay-rates"])
def test_a_worker_that_truncates_what_all_share(pair: Relay, name: str) -> None:
    workers = pair.worker_pids()
    descriptor = shared(workers[0], name)
    try:
        with connect(pair.address()) as client:
            assert exchange(client) == b"ping"
            with contextlib.suppress(PermissionError):
                os.ftruncate(descriptor, 0)
            assert pair.status()["connections"]["active"] == 1
            assert exchange(client) == b"ping"
            assert all(echoes(pair.address()) for _ in range(10))
            assert all(map(alive, workers))
    finally:
        os.close(descriptor)
    pair.wait_outcomes({"ok": 11})
