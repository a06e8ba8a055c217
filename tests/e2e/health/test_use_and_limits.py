"""What the processes use, and each limit beside its use, in the metrics."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from relay.core.counters import UPSTREAM_SLOTS
from tests.support.clients import crowd, echoes
from tests.support.harness import Start
from tests.support.observe import descriptors
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

TABLES = """\
[limits]
held_bytes = 5000000
[dial]
rate = 1000.0
queue = 77
"""


def test_what_the_supervisor_uses(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    metrics, pid = relay.metrics(), relay.process.pid
    assert metrics.value("process_cpu_seconds_total") > 0
    assert 5e6 < metrics.value("process_resident_memory_bytes") < 500e6
    assert abs(metrics.value("process_open_fds") - len(descriptors(pid))) <= 3  # the scrape's connection, the folder
    assert metrics.value("process_max_fds") == relay.status()["descriptors"]
    assert abs(time.time() - metrics.value("process_start_time_seconds")) < 60


def test_what_each_worker_uses(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    pids = {str(worker["index"]): worker["pid"] for worker in relay.status()["workers"]}
    with crowd(relay.address(), 40) as clients:
        assert len(clients.served) == 40
        relay.wait_active(40)
        metrics = relay.metrics()
        assert sum(metrics.by_label("relay_worker_connections_active", "worker").values()) == 40
        for worker, pid in pids.items():
            assert metrics.value("relay_worker_cpu_seconds_total", worker=worker) > 0
            assert 5e6 < metrics.value("relay_worker_resident_memory_bytes", worker=worker) < 500e6
            assert metrics.value("relay_worker_descriptors_limit", worker=worker) == relay.status()["descriptors"]
            limit = metrics.value("relay_worker_connections_limit", worker=worker)
            assert limit * 2 == metrics.value("relay_connections_limit")
            if Path("/proc/self/fd").stat().st_size:
                assert metrics.value("relay_worker_descriptors_in_use", worker=worker) == len(descriptors(pid))
            else:  # before Linux 6.2
                assert metrics.by_label("relay_worker_descriptors_in_use", "worker") == {}


def test_a_worker_s_processor_time_does_not_go_back_when_it_is_replaced(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    for _ in range(300):
        assert echoes(relay.address())
    before = relay.metrics().value("relay_worker_cpu_seconds_total", worker="0")
    assert before > 0
    (pid,) = relay.worker_pids()
    os.kill(pid, signal.SIGKILL)
    relay.expected_errors.add("worker died")
    relay.wait_status(lambda status: status["workers"][0]["pid"] is None or status["workers"][0]["restarts"])
    gone = relay.metrics().value("relay_worker_cpu_seconds_total", worker="0")
    relay.wait_status(lambda status: status["workers"][0]["ready"] and status["workers"][0]["pid"] != pid)
    after = relay.metrics().value("relay_worker_cpu_seconds_total", worker="0")
    assert before <= gone <= after


def test_limits_stand_beside_their_use(echo: Echo, start: Start) -> None:
    relay = start(
        settings(listener(echo.address, more="max_connections = 9"), listener(echo.address, name="free"), tables=TABLES)
    )
    metrics = relay.metrics()
    assert metrics.by_label("relay_listener_connections_limit", "listener") == {"main": 9}
    assert metrics.value("relay_dial_queue_limit") == 77
    assert metrics.value("relay_held_bytes_limit", worker="0") == 5_000_000
    assert (metrics.value("relay_listener_slots_in_use"), metrics.value("relay_listener_slots_limit")) == (2, 18)
    assert (metrics.value("relay_upstream_slots_in_use"), metrics.value("relay_upstream_slots_limit")) == (
        1,
        UPSTREAM_SLOTS,
    )
    # Places that a reload takes are gone for good; a limit that it sets counts.
    relay.config.write_text(settings(listener(echo.address, name="other", more="max_connections = 4"), tables=TABLES))
    assert relay.post("/reload") == (200, "ok\n")
    metrics = relay.metrics()
    assert metrics.value("relay_listener_slots_in_use") == 3
    assert metrics.by_label("relay_listener_connections_limit", "listener") == {"other": 4}


def test_what_has_no_limit_has_none_in_the_metrics(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables="[limits]\nheld_bytes = 0\n"))
    names = {name for name, _ in relay.metrics().samples}
    for absent in ("relay_listener_connections_limit", "relay_dial_queue_limit", "relay_held_bytes_limit"):
        assert absent not in names


def test_a_worker_that_stands_still_can_be_looked_at_all_the_same(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    (pid,) = relay.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert relay.metrics().value("relay_worker_resident_memory_bytes", worker="0") > 5e6
    finally:
        os.kill(pid, signal.SIGCONT)
