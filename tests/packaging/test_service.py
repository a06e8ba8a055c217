"""relay.service on a real systemd: privileges, readiness, reload, crashes, hangs, the end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.engines.choice import choose
from tests.packaging.installed import PATIENCE, PORTS, Installed
from tests.support.observe import Metrics, wait_until

pytestmark = pytest.mark.timeout(300)  # the first one may have to make the machine's root

BIND_SERVICE = 1 << 10  # capabilities(7)


def notifications(relay: Installed) -> list[str]:
    """Every field that systemd has got, in order; it says so at log level debug."""
    lines = relay.machine.journal("_PID=1")
    fields = re.findall(r"relay\.service: Got notification message from PID \d+ \((.*)\)", lines)
    return [field for message in fields for field in message.split(", ")]


@contextlib.contextmanager
def talkative(relay: Installed) -> Iterator[None]:
    """With systemd saying what it gets."""
    relay.machine.systemctl("log-level", "debug")
    yield
    relay.machine.systemctl("log-level", "info")


# --- as installed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_serves_all_ports_as_soon_as_it_has_been_started(relay: Installed, host: str) -> None:
    relay.start()
    assert all(relay.echoes(port, host) for port in PORTS.values())


def test_it_may_bind_ports_and_nothing_else(relay: Installed) -> None:
    relay.start()
    for pid in relay.pids():
        found = relay.process(pid)
        capabilities = {name: int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert set(capabilities.values()) == {BIND_SERVICE}, capabilities
        assert "0" not in found["Uid"].split()
        assert "0" not in found["Gid"].split()
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def test_its_sandbox_takes_no_engine_away(relay: Installed) -> None:
    relay.start()
    status = relay.status()
    assert status["engine"] == choose("auto", 2).name, status["engine_reason"]


def test_the_upstreams_need_not_answer_for_a_start(relay: Installed) -> None:
    relay.configure(upstream="nowhere.invalid")
    relay.start()
    assert relay.machine.show("ActiveState") == "active"


def test_mistakes_in_the_settings_are_in_the_journal_once(relay: Installed) -> None:
    relay.configure("[tcp]\nkeepalive_idle = -1\n")
    relay.machine.systemctl("daemon-reload")
    relay.machine.systemctl("start", "--no-block", "relay")
    wait_until(lambda: relay.machine.show("ActiveState") == "failed", PATIENCE)
    assert (relay.machine.show("ExecMainStatus"), relay.restarts) == ("2", 0)
    assert relay.machine.journal().count("relay: tcp.keepalive_idle") == 1
    relay.configure()
    relay.machine.systemctl("start", "relay")
    assert relay.echoes()


def test_settings_that_come_later_are_waited_for(relay: Installed) -> None:
    """As on a first boot, where another unit fetches them."""
    relay.machine.run("rm", "/etc/relay/relay.toml")
    relay.machine.systemctl("daemon-reload")
    relay.machine.systemctl("start", "--no-block", "relay")
    wait_until(lambda: relay.restarts > 1, PATIENCE)
    relay.configure()
    wait_until(lambda: relay.machine.show("SubState") == "running", PATIENCE)
    assert relay.echoes()


def test_a_port_that_is_in_use_is_waited_for(relay: Installed) -> None:
    with relay.machine.inside(lambda: socket.create_server(("127.0.0.1", 443))):
        relay.machine.systemctl("daemon-reload")
        relay.machine.systemctl("start", "--no-block", "relay")
        wait_until(lambda: relay.restarts > 1, PATIENCE)
    wait_until(lambda: relay.machine.show("SubState") == "running", PATIENCE)
    assert "relay: listeners.https.bind: 0.0.0.0:443: address already in use" in relay.machine.journal()
    assert "code=exited, status=1/FAILURE" in relay.machine.journal("_PID=1")
    assert relay.echoes()


def test_what_the_processes_use_is_in_the_metrics(relay: Installed) -> None:
    """/proc of the workers is to be seen from inside the sandbox."""
    relay.start()
    metrics = Metrics(relay.get("/metrics"))
    assert metrics.value("process_resident_memory_bytes") > 5e6
    for worker in ("0", "1"):
        assert metrics.value("relay_worker_cpu_seconds_total", worker=worker) > 0
        assert metrics.value("relay_worker_resident_memory_bytes", worker=worker) > 5e6
        if Path("/proc/self/fd").stat().st_size:  # Linux 6.2
            assert metrics.value("relay_worker_descriptors_in_use", worker=worker) > 5


def test_the_journal_has_the_priority_of_each_line(relay: Installed) -> None:
    relay.start()
    assert relay.echoes()
    wait_until(lambda: relay.log("connection"), PATIENCE)
    worker = relay.pids()[1]
    # As a hang does; Python's own handler for it writes a traceback with no priority.
    relay.machine.run("kill", "-ABRT", str(worker))
    wait_until(lambda: relay.status()["workers"][0]["restarts"] == 1, PATIENCE)
    wait_until(lambda: relay.log("worker died"), PATIENCE)
    entries = [json.loads(line) for line in relay.machine.journal("-u", "relay", "-o", "json").splitlines()]
    said = [(entry["PRIORITY"], entry["MESSAGE"]) for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    assert not [message for _, message in said if message.startswith("<")]

    def priorities(text: str) -> set[str]:
        return {priority for priority, message in said if text in message}

    assert priorities('"event": "connection"') == priorities('"event": "ready"') == {"6"}
    assert priorities('"event": "worker died"') == priorities("Fatal Python error: Aborted") == {"3"}
    errors = relay.machine.journal("-u", "relay", "-p", "err", "-o", "cat")
    assert "worker died" in errors
    assert "connection" not in errors.replace("connections_lost", "")


def test_a_reload_s_check_and_a_start_s_mistakes_have_their_priorities_too(relay: Installed) -> None:
    relay.start()
    relay.configure("[tcp]\nkeepalive_idle = -1\n")
    assert "failed" in relay.machine.systemctl("reload", "relay", check=False).lower()
    errors = relay.machine.journal("-u", "relay", "-p", "err", "-o", "cat")
    assert re.search("^relay: tcp.keepalive_idle", errors, re.MULTILINE)
    relay.configure()
    relay.machine.systemctl("reload", "relay")
    wait_until(lambda: relay.log("reloaded"), PATIENCE)
    assert relay.machine.journal("-u", "relay", "-p", "err", "-o", "cat") == errors


# --- what it tells systemd ------------------------------------------------------------------------------------------


def test_it_says_when_it_is_ready_and_how_it_is(relay: Installed) -> None:
    with talkative(relay):
        relay.start()
    assert notifications(relay).count("READY=1") == 1
    wait_until(lambda: "2 of 2 workers" in relay.machine.show("StatusText"), PATIENCE)
    with relay.machine.connect(("127.0.0.1", 443)):
        wait_until(lambda: "1 connection" in relay.machine.show("StatusText"), PATIENCE)


def test_a_reload_begins_and_ends(relay: Installed) -> None:
    relay.start()
    relay.configure(ports={**PORTS, "more": 9443})
    with talkative(relay):
        relay.machine.systemctl("reload", "relay")
        wait_until(lambda: "READY=1" in notifications(relay), PATIENCE, lambda: str(notifications(relay)))
    said = [field.partition("=")[0] for field in notifications(relay)]
    # The loop goes on while the file is read: signs of life may come between.
    said = [name for name in said if name not in ("WATCHDOG", "STATUS")]
    assert said[said.index("RELOADING") :][:3] == ["RELOADING", "MONOTONIC_USEC", "READY"]
    assert relay.echoes(9443)
    assert relay.machine.show("ActiveState") == "active"


def test_a_reload_with_mistakes_fails_and_changes_nothing(relay: Installed) -> None:
    relay.start()
    relay.configure("[tcp]\nkeepalive_idle = -1\n")
    said = relay.machine.systemctl("reload", "relay", check=False)
    assert "failed" in said
    assert "tcp.keepalive_idle" in relay.machine.journal()
    assert relay.echoes()
    assert relay.machine.show("ActiveState") == "active"


def test_a_reload_that_only_a_start_can_carry_out_fails_and_leaves_the_unit_up(relay: Installed) -> None:
    relay.start()
    relay.configure('[log]\nformat = "console"\n')
    assert "failed" in relay.machine.systemctl("reload", "relay", check=False)
    assert "relay: log.format: is 'json', and only a restart can make it 'console'" in relay.machine.journal()
    assert relay.machine.show("SubState") == "running"
    assert relay.echoes()


@pytest.mark.parametrize("admin", ["127.0.0.1:8414", ""])
def test_a_reload_after_an_edit_of_the_environment_file_fails_and_names_the_variables(
    relay: Installed, admin: str
) -> None:
    """In the unit's own sandbox: a user of its own, /proc without others' processes, an ambient capability."""
    if not admin:
        relay.configure('[admin]\nbind = ""\n')
    relay.machine.write("/etc/default/relay", "RELAY_LIMITS__MAX_CONNECTIONS=5\n")
    relay.start()
    relay.machine.systemctl("reload", "relay")
    # Before systemd 253 the command ends with ExecReload, and the reload itself may still be under way.
    wait_until(lambda: relay.machine.show("SubState") == "running", PATIENCE)
    relay.machine.write("/etc/default/relay", "RELAY_LIMITS__MAX_CONNECTIONS=9\nRELAY_DIAL__RATE=100\n")
    assert "failed" in relay.machine.systemctl("reload", "relay", check=False)
    said = [line for line in relay.machine.journal().splitlines() if line.startswith("relay: ")]
    ending = "only a restart applies it"
    assert said == [
        f"relay: RELAY_DIAL__RATE is not set in the environment of the running relay and 100 here: {ending}",
        f"relay: RELAY_LIMITS__MAX_CONNECTIONS is 5 in the environment of the running relay and 9 here: {ending}",
    ]
    assert relay.machine.show("ActiveState") == "active"
    relay.machine.systemctl("restart", "relay")
    relay.machine.systemctl("reload", "relay")
    assert relay.echoes()


# --- crashes and hangs ----------------------------------------------------------------------------------------------


def test_a_supervisor_that_is_killed_comes_back(relay: Installed) -> None:
    relay.start()
    relay.machine.signal(relay.pid, signal.SIGKILL)
    relay.wait_ready(1)
    assert relay.echoes()


def test_a_supervisor_that_hangs_is_replaced(relay: Installed) -> None:
    relay.drop_in("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    relay.start()
    time.sleep(4)  # it gives life signs
    assert relay.restarts == 0
    relay.machine.signal(relay.pid, signal.SIGSTOP)
    relay.wait_ready(1)
    assert "Watchdog timeout" in relay.machine.journal("_PID=1")
    assert relay.echoes()


def test_workers_go_before_the_supervisor_when_memory_runs_out(relay: Installed) -> None:
    relay.start()
    supervisor, *workers = (int(relay.machine.run("cat", f"/proc/{pid}/oom_score_adj")) for pid in relay.pids())
    assert workers == [supervisor + 500] * 2
    assert "when memory runs out" not in relay.machine.journal()


def test_a_worker_that_hangs_is_the_supervisors_affair(relay: Installed) -> None:
    # Long enough that on a busy machine nobody but the stopped worker is taken to hang.
    relay.configure("[supervision]\nhang_timeout = 8.0\n")
    relay.drop_in("[Service]\nWatchdogSec=30\n")
    relay.start()
    supervisor, worker, _ = relay.pids()
    relay.machine.signal(worker, signal.SIGSTOP)
    wait_until(lambda: relay.log("worker died"), PATIENCE, relay.machine.journal)
    wait_until(lambda: len(relay.log("worker ready")) == 3, PATIENCE, relay.machine.journal)
    assert (relay.pid, relay.restarts) == (supervisor, 0)
    assert all(relay.echoes() for _ in range(8))


def test_a_worker_that_is_killed_for_memory_ends_nothing_else(relay: Installed) -> None:
    relay.start()
    supervisor, worker, _ = relay.pids()
    relay.machine.signal(worker, signal.SIGKILL)
    wait_until(lambda: len(relay.log("worker ready")) == 3, PATIENCE)
    assert (relay.pid, relay.restarts) == (supervisor, 0)
    assert relay.machine.show("OOMPolicy") == "continue"


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_drain_may_take_longer_than_the_unit_allows(relay: Installed) -> None:
    relay.machine.write("/etc/default/relay", "RELAY_DRAIN__ANNOUNCE=3.0\nRELAY_DRAIN__WINDOW=3.0\n")
    relay.drop_in("[Service]\nTimeoutStopSec=2\n")
    relay.start()
    with talkative(relay):
        with relay.machine.connect(("127.0.0.1", 443), PATIENCE) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            began = time.monotonic()
            relay.machine.systemctl("stop", "--no-block", "relay")
            assert client.recv(1) == b""
        assert time.monotonic() - began > 3
        wait_until(lambda: relay.machine.show("ActiveState") == "inactive", PATIENCE)
    assert relay.machine.show("Result") == "success"
    assert "STOPPING=1" in notifications(relay)
    (last,) = relay.log("stopped")
    assert last["outcomes"] == {"drained": 1}, last


def test_nothing_is_left_of_it(relay: Installed) -> None:
    relay.start()
    relay.machine.systemctl("stop", "relay")
    assert "relay" not in relay.machine.run("ps", "-eo", "args")
    assert relay.machine.show("Result") == "success"
