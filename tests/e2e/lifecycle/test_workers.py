"""Workers that crash or hang are replaced, one that cannot stay alive is told of, and none outlives its supervisor."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

from tests.support.clients import connect, echoes, exchange
from tests.support.harness import Start
from tests.support.observe import alive, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

HANG = "[supervision]\nhang_timeout = 4.0\n"


def test_a_worker_that_hangs_is_killed_and_replaced(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=HANG))
    relay.expected_errors |= {"worker hangs", "worker killed", "worker died"}
    victim, other = relay.worker_pids()
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: not alive(victim), 30, what="the worker that hangs is gone")
    status = relay.wait_status(
        lambda status: all(one["ready"] and not one["hung"] for one in status["workers"]), what="a successor"
    )
    assert status["workers"][0]["restarts"] == 1
    assert status["workers"][1]["pid"] == other
    for _ in range(20):
        assert echoes(relay.address())
    (line,) = relay.told("worker hangs")
    assert line["worker"] == 0


def test_connections_in_the_queue_of_one_that_hangs_are_served_by_its_successor(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=HANG))
    relay.expected_errors |= {"worker hangs", "worker killed", "worker died"}
    (victim,) = relay.worker_pids()
    os.kill(victim, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(50)]
        for client in clients:
            client.settimeout(30)
            assert exchange(client) == b"ping"
    assert not alive(victim)


def test_a_worker_that_dies_again_and_again_makes_the_instance_not_ready(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors.add("worker died")
    deaths = 0
    while relay.get("/readyz") != (503, "worker 0: crash-looping\n"):
        assert deaths < 10
        status = relay.wait_status(lambda status: status["workers"][0]["pid"] is not None, 40, "a worker to kill")
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        deaths += 1
        wait_until(lambda: len(relay.events("worker died")) == deaths, what="its death is seen")  # noqa: B023
    assert deaths == 3
    assert relay.get("/livez")[0] == 200
    assert echoes(relay.address()), "the other one serves"


def test_workers_end_when_the_supervisor_is_gone(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    workers = relay.worker_pids()
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.kill()
        assert client.recv(1) == b""
    wait_until(lambda: not any(map(alive, workers)), what="no orphans")
