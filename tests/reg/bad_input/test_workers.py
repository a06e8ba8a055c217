"""Workers that die or hang, and a supervisor that dies: what is lost, what is not, and who notices."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.worker import go_before_the_supervisor
from tests.clients import connect, echoes, exchange
from tests.harness import Relay, Start
from tests.observe import Metrics, alive, wait_until
from tests.relay_toml import listener, settings
from tests.upstreams import Echo

# Becomes another program with that OOM score, which children inherit.
SCORED = """\
import os, sys
with open("/proc/self/oom_score_adj", "w") as file:
    file.write(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.fixture
def pair(echo: Echo, start: Start) -> Relay:
    """A relay of two workers that may die."""
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors.add("worker died")
    return relay


def worker_of(relay: Relay, before: dict[int, int]) -> int:
    """The worker that got one more connection than before."""
    after = active(relay)
    (pid,) = [pid for pid, count in after.items() if count == before[pid] + 1]
    return pid


def active(relay: Relay) -> dict[int, int]:
    """How many connections each worker has."""
    return {item["pid"]: item["active"] for item in relay.status()["workers"]}


def grown(before: Metrics, after: Metrics) -> bool:
    """Whether no counter went back."""
    later = after.counters()
    return all(later[key] >= value for key, value in before.counters().items())


def test_a_worker_that_is_killed_under_load_is_replaced(pair: Relay) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            assert exchange(stack.enter_context(connect(pair.address())), b"x" * 100) == b"x" * 100
        pair.wait_status(lambda status: status["bytes"]["down"] == 4000)
        before = pair.metrics()
        victim, lost = max(active(pair).items(), key=lambda item: item[1])
        os.kill(victim, signal.SIGKILL)
        status = pair.wait_status(
            lambda status: all(item["ready"] for item in status["workers"]) and victim not in pids(status), what="ready"
        )
        assert status["connections"]["active"] == status["connections"]["admitted"] == 40 - lost
        assert status["connections"]["outcomes"]["worker_died"] == lost
        assert sum(item["restarts"] for item in status["workers"]) == 1
        after = pair.metrics()
        assert grown(before, after)
        assert after.value("relay_worker_restarts_total") == 1
        assert after.value("relay_connections_total", listener="main", outcome="worker_died") == lost
        (line,) = pair.told("worker died")
        assert (line["pid"], line["how"], line["connections_lost"]) == (victim, "signal SIGKILL", lost)
        assert all(echoes(pair.address()) for _ in range(20))
    pair.wait_outcomes({"ok": 60 - lost, "worker_died": lost})


def pids(status: dict[str, object]) -> list[int]:
    workers = status["workers"]
    assert isinstance(workers, list)
    return [item["pid"] for item in workers]


def test_counters_never_go_back_while_workers_die(pair: Relay) -> None:
    last = pair.metrics()
    for _ in range(3):
        assert all(echoes(pair.address()) for _ in range(10))
        victim = pair.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)

        def replaced(victim: int = victim) -> bool:
            nonlocal last
            sample = pair.metrics()
            assert grown(last, sample)
            last = sample
            status = pair.status()
            return victim not in pids(status) and all(item["ready"] for item in status["workers"])

        wait_until(replaced, what="the worker replaced")
    pair.wait_outcomes({"ok": 30})


def test_connections_in_the_queue_of_a_worker_that_dies_are_served_by_its_successor(pair: Relay) -> None:
    workers = pair.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # nobody accepts
    clients = [connect(pair.address()) for _ in range(40)]
    try:
        for client in clients:
            client.sendall(b"patience")
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            assert client.recv(100) == b"patience"
    finally:
        for client in clients:
            client.close()
    pair.wait_outcomes({"ok": 40})
    assert pair.status()["connections"]["accepted"] == 40


def test_a_worker_that_dies_again_and_again_is_replaced_after_growing_pauses(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("worker died")
    for number in range(1, 4):
        (victim,) = relay.worker_pids()
        os.kill(victim, signal.SIGKILL)
        relay.wait_status(lambda status: status["workers"][0]["restarts"] == number, what=f"restart {number}")  # noqa: B023
        relay.wait_status(lambda status: status["workers"][0]["ready"], what="ready again")
        assert echoes(relay.address())
    waits = [line["restart_in_seconds"] for line in relay.told("worker died", 3)]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] > 0


def test_a_worker_that_hangs_is_told_by_livez_until_it_goes_on(pair: Relay) -> None:
    with ExitStack() as stack:
        before = active(pair)
        client = stack.enter_context(connect(pair.address()))
        assert exchange(client) == b"ping"
        pair.wait_active(1)
        victim = worker_of(pair, before)
        index = pair.worker_pids().index(victim)
        os.kill(victim, signal.SIGSTOP)
        try:
            wait_until(lambda: pair.get("/livez", "health")[0] == 503, what="not live")
            assert pair.get("/livez") == (503, f"worker {index}: loop does not answer\n")
            assert '"Unhealthy"' in pair.get("/healthz")[1]
            assert pair.get("/healthz")[0] == 200
            assert pair.status()["workers"][index]["hung"]
            assert not pair.status()["live"]
        finally:
            os.kill(victim, signal.SIGCONT)
        wait_until(lambda: pair.get("/livez") == (200, "ok\n"), what="live again")
        assert exchange(client) == b"ping"
    pair.wait_outcomes({"ok": 1})
    assert not pair.events("worker died")


@pytest.mark.parametrize(("inherited", "expected"), [(0, 500), (300, 800), (700, 1000), (1000, 1000)])
def test_when_memory_runs_out_workers_go_before_the_supervisor(
    echo: Echo, start: Start, inherited: int, expected: int
) -> None:
    relay = start(settings(listener(echo.address), workers=2), wrapper=[sys.executable, "-c", SCORED, str(inherited)])
    assert oom_score(relay.process.pid) == inherited
    assert [oom_score(pid) for pid in relay.worker_pids()] == [expected] * 2


def test_what_a_unit_gives_the_supervisor_is_where_a_worker_begins(tmp_path: Path) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text("-500\n")
    go_before_the_supervisor(score)
    assert score.read_text() == "0"


def test_where_it_cannot_be_raised_the_worker_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go_before_the_supervisor(tmp_path / "none")
    assert "the kernel may kill the supervisor before this worker" in caplog.text


def test_workers_end_when_the_supervisor_is_killed(pair: Relay) -> None:
    workers = pair.worker_pids()
    with connect(pair.address()) as client:
        assert exchange(client) == b"ping"
        pair.kill()
        wait_until(lambda: not any(map(alive, workers)), what="the workers' end")
        assert client.recv(1) == b""  # everything was delivered before
    with pytest.raises(ConnectionRefusedError):
        connect(pair.address())
