"""Workers that die or hang, and a supervisor that dies: what is lost, what is not, and who notices."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import connect, echoes, exchange
from tests.support.harness import Relay, Start
from tests.support.observe import Metrics, alive, room_for, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

# For setpriv(1): this interpreter and the tests' folders may be root's alone.
MAY_READ = ["--inh-caps=+dac_read_search,+dac_override", "--ambient-caps=+dac_read_search,+dac_override"]
TASKS = 100
# Becomes another program whose user may have so many tasks.
LIMITED = f"""\
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NPROC, ({TASKS}, {TASKS}))
os.execv(sys.argv[1], sys.argv[1:])
"""
# Is so many tasks, until its input ends.
CROWD = """\
import sys, threading
over = threading.Event()
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=over.wait).start()
print("there", flush=True)
sys.stdin.read()
over.set()
"""
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


def test_no_descriptor_to_start_a_worker_with(pair: Relay) -> None:
    pair.expected_errors.add("worker not started")
    (victim, _) = pair.worker_pids()
    with room_for(pair.process.pid, 0):
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(pair.events("worker not started")) >= 2, what="two tries")
    pair.wait_status(lambda status: all(item["ready"] for item in status["workers"]), 40, "a successor")
    first, second, *_ = pair.events("worker not started")
    assert "Too many open files" in first["error"]
    assert first["next_try_in_seconds"] < second["next_try_in_seconds"]
    assert all(echoes(pair.address()) for _ in range(10))


@pytest.mark.parametrize("more", [0, 1])
def test_no_task_to_start_a_worker_with(echo: Echo, start: Start, more: int) -> None:
    """None for a process at first, then for its threads; limits of tasks hold for users other than root."""
    if os.getuid() != 0 or not (setpriv := shutil.which("setpriv")):
        pytest.skip("needs root and setpriv (util-linux), to run as a user of its own")
    user = random.randrange(1 << 20, 1 << 30)
    become = [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups", *MAY_READ]
    relay = start(settings(listener(echo.address), workers=2), wrapper=[sys.executable, "-c", LIMITED, *become])
    relay.expected_errors |= {"worker died", "worker not started"}
    victim, other = relay.worker_pids()
    room = TASKS - tasks(user) + threads(victim)
    with subprocess.Popen(
        [*become, sys.executable, "-c", CROWD, str(room - more)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == b"there\n"
        os.kill(victim, signal.SIGKILL)

        def in_trouble() -> bool:
            told = relay.events("worker not started") + relay.events("worker died")
            return len(told) >= 3 and relay.get("/readyz")[0] == 503

        wait_until(in_trouble, 40, what="not ready, and the log saying why")
        assert alive(other)
    relay.wait_status(lambda status: all(item["ready"] for item in status["workers"]), 60, "a successor")
    wait_until(lambda: relay.get("/readyz") == (200, "ok\n"), 30, what="ready again")
    assert all(echoes(relay.address()) for _ in range(10))
    assert all(line == "can't start new thread" for line in reasons(relay.errors.read_text()))
    relay.errors.write_text("")  # a worker says there why it ends


def reasons(errors: str) -> list[str]:
    """What tracebacks end with."""
    return [line.removeprefix("RuntimeError: ") for line in errors.splitlines() if "Error: " in line]


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def tasks(user: int) -> int:
    """How many threads that user has."""
    found = 0
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += threads(int(path.name)) if path.stat().st_uid == user else 0
    return found


@pytest.mark.parametrize(("inherited", "expected"), [(0, 500), (300, 800), (700, 1000), (1000, 1000)])
def test_when_memory_runs_out_workers_go_before_the_supervisor(
    echo: Echo, start: Start, inherited: int, expected: int
) -> None:
    relay = start(settings(listener(echo.address), workers=2), wrapper=[sys.executable, "-c", SCORED, str(inherited)])
    assert oom_score(relay.process.pid) == inherited
    assert [oom_score(pid) for pid in relay.worker_pids()] == [expected] * 2


def test_workers_end_when_the_supervisor_is_killed(pair: Relay) -> None:
    workers = pair.worker_pids()
    with connect(pair.address()) as client:
        assert exchange(client) == b"ping"
        pair.kill()
        wait_until(lambda: not any(map(alive, workers)), what="the workers' end")
        assert client.recv(1) == b""  # everything was delivered before
    with pytest.raises(ConnectionRefusedError):
        connect(pair.address())
