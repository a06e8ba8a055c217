"""A machine that runs out of descriptors: nothing is lost, nothing spins, and it goes on when there are some again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.clients import connect, echoes, exchange, refused
from tests.support.harness import Relay, Start
from tests.support.observe import descriptors, room_for
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

Unharmed = Callable[..., AbstractContextManager[None]]


# Becomes another program, which has so many descriptors open that every further one is beyond FD_SETSIZE, 1,024.
CROWDED = """\
import os, sys
for number in range(3, 1100):
    os.dup2(0, number)
os.execv(sys.argv[1], sys.argv[1:])
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def pauses(relay: Relay) -> int:
    return int(relay.status()["accept_pauses"])


def test_no_descriptor_to_accept_with(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address)))
    (worker,) = relay.worker_pids()
    with unharmed(relay), connect(relay.address()) as established:
        assert exchange(established) == b"ping"
        with room_for(worker, 0):
            queued = [connect(relay.address()) for _ in range(5)]
            relay.wait_status(lambda status: status["accept_pauses"] >= 1, what="accepting paused")
            spent, seen = cpu_seconds(worker), pauses(relay)
            assert exchange(established) == b"ping"
            relay.wait_status(lambda status: status["accept_pauses"] >= seen + 4, what="tried again now and then")
            # Four pauses take a second: a loop that spins would have used all of it.
            assert cpu_seconds(worker) - spent < 0.3
            assert relay.get("/livez") == (200, "ok\n")
            assert relay.status()["connections"]["accepted"] == 1
        for client in queued:
            with client:
                assert exchange(client) == b"ping"
    relay.wait_outcomes({"ok": 7})
    assert [line for line in relay.log_lines() if line["event"].startswith("accept paused: Too many open files")]
    assert relay.metrics().value("relay_accept_pauses_total") == pauses(relay)


def test_descriptors_beyond_what_select_can_take(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address), workers=2), wrapper=[sys.executable, "-c", CROWDED])
    assert descriptors(relay.process.pid)[-1] > 1100
    relay.expected_errors.add("worker died")
    with unharmed(relay):
        assert echoes(relay.address())
    victim = relay.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    relay.wait_status(
        lambda status: all(one["ready"] and one["pid"] != victim for one in status["workers"]), what="a successor"
    )
    assert all(echoes(relay.address()) for _ in range(10))


def test_no_descriptor_to_dial_with(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address)))
    (worker,) = relay.worker_pids()
    with unharmed(relay):
        with room_for(worker, 1):
            assert refused(relay.address())
        relay.wait_outcomes({"no_resources": 1})
    line, _ = relay.access(2)
    assert (line["outcome"], line["state"]) == ("no_resources", "RC")
