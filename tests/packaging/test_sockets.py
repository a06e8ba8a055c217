"""relay.socket on a real systemd: sockets that outlive relay, and whose each one is."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.packaging.installed import PATIENCE, PORTS, Installed
from tests.support.observe import wait_until

pytestmark = pytest.mark.timeout(300)

NAMED = """\
[Socket]
Service=relay.service
FileDescriptorName=mqtt
ListenStream=0.0.0.0:9883
ListenStream=[::]:9883
BindIPv6Only=ipv6-only
"""


def notes(relay: Installed) -> str:
    return "\n".join(line for line in relay.machine.journal().splitlines() if '"warning"' in line)


class Clients:
    """Clients one after another, as long as the block lasts; `failed` says what became of those that got nothing."""

    def __init__(self, relay: Installed, patience: float) -> None:
        self._relay = relay
        self._patience = patience
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(port,)) for port in PORTS.values()]
        self.served = 0
        self.failed: list[str] = []

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.served > 20 or self.failed)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _come(self, port: int) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                assert self._relay.echoes(port, timeout=self._patience)
                self.served += 1
            except (OSError, AssertionError) as error:
                self.failed.append(f"{error!r} at {port} after {time.monotonic() - began:.2f} s")


@pytest.fixture
def activated(relay: Installed) -> Installed:
    """With the sockets of deploy/systemd; relay is not started."""
    relay.start("relay.socket")
    return relay


def test_the_sockets_are_taken_over_without_a_word(activated: Installed) -> None:
    activated.start()
    assert all(activated.echoes(port, host) for port in PORTS.values() for host in ("127.0.0.1", "::1"))
    assert notes(activated) == ""
    binds = {one["name"]: one["bind"] for one in activated.status()["listeners"]}
    assert binds == {name: [f"0.0.0.0:{port}", f"[::]:{port}"] for name, port in PORTS.items()}
    # One socket for each address, and it is systemd's: relay has bound none of its own.
    listening = activated.machine.run("ss", "-Hltn", "sport = :443").splitlines()
    assert len(listening) == 2, listening


def test_the_first_client_starts_it(activated: Installed) -> None:
    assert activated.machine.show("ActiveState") == "inactive"
    assert activated.echoes(timeout=PATIENCE)
    wait_until(lambda: activated.machine.show("ActiveState") == "active", PATIENCE)


def test_what_it_starts_inherits_no_variables(activated: Installed) -> None:
    activated.start()
    for pid in activated.pids()[1:]:
        environ = activated.machine.run("cat", f"/proc/{pid}/environ")
        assert not [name for name in ("LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC") if name in environ]


def test_no_client_is_refused_while_it_restarts(activated: Installed) -> None:
    activated.start()
    before = activated.pid
    with Clients(activated, PATIENCE) as clients:
        activated.machine.systemctl("restart", "relay")
        served = clients.served
        wait_until(lambda: clients.served > served + 20 or clients.failed)
    assert clients.failed == []
    assert activated.pid != before


def test_clients_that_come_while_it_is_away_wait(activated: Installed) -> None:
    activated.start()
    activated.machine.systemctl("kill", "--signal=SIGKILL", "--kill-whom=all", "relay.service")
    waiting = [activated.machine.connect(("127.0.0.1", port), PATIENCE) for port in PORTS.values()]
    for client in waiting:
        with client:
            client.sendall(b"still here?")
            assert client.recv(100) == b"still here?"
    activated.wait_ready(1)


def test_a_worker_that_dies_leaves_the_queue_to_the_others(activated: Installed) -> None:
    activated.start()
    worker = activated.pids()[1]
    activated.machine.signal(worker, signal.SIGSTOP)
    assert all(activated.echoes() for _ in range(20))
    activated.machine.signal(worker, signal.SIGKILL)
    assert all(activated.echoes() for _ in range(20))


def test_a_reload_keeps_them(activated: Installed) -> None:
    activated.start()
    activated.configure(ports={**PORTS, "more": 9443})
    activated.machine.systemctl("reload", "relay")
    wait_until(lambda: activated.log("reloaded"), PATIENCE)
    assert all(activated.echoes(port) for port in (*PORTS.values(), 9443))


def test_a_reload_does_not_leave_one_without_a_listener(activated: Installed) -> None:
    activated.start()
    activated.configure(ports={"https": 443, "mqtt": 8883})
    activated.machine.systemctl("reload", "relay")
    wait_until(lambda: activated.log("reload failed"), PATIENCE)
    (failed,) = activated.log("reload failed")
    assert [problem for problem in failed["problems"] if "0.0.0.0:5671" in problem and "ListenStream=" in problem]
    assert all(activated.echoes(port) for port in PORTS.values())


def test_a_drain_that_is_taken_back_serves_who_came_meanwhile(activated: Installed) -> None:
    activated.start()
    activated.machine.run("relay", "drain", "--wait")
    with activated.machine.connect(("127.0.0.1", 443), PATIENCE) as client:
        client.sendall(b"waiting")
        activated.machine.run("relay", "undrain")
        assert client.recv(100) == b"waiting"


# --- whose they are -------------------------------------------------------------------------------------------------


def test_a_socket_with_a_listeners_name_is_that_ones(relay: Installed) -> None:
    relay.unit("relay-mqtt.socket", NAMED)
    relay.start("relay-mqtt.socket", "relay.service")
    assert relay.echoes(9883)
    assert relay.echoes(9883, "::1")
    assert relay.echoes(443)
    with pytest.raises(ConnectionRefusedError):
        relay.echoes(8883)
    assert "listeners.mqtt.bind: not 0.0.0.0:8883" in notes(relay)
    assert "listeners.https.bind: 0.0.0.0:443: no ListenStream=" in notes(relay)
    relay.machine.systemctl("reload", "relay")
    wait_until(lambda: relay.log("reloaded"), PATIENCE)


def test_one_socket_for_both_families_is_taken_for_both(relay: Installed) -> None:
    relay.drop_in("[Socket]\nListenStream=\nListenStream=443\nBindIPv6Only=both\n", "relay.socket")
    relay.configure(ports={"https": 443})
    relay.start("relay.socket", "relay.service")
    assert relay.echoes(443)
    assert relay.echoes(443, "::1")
    assert "BindIPv6Only=ipv6-only" in notes(relay)
    relay.machine.systemctl("reload", "relay")
    wait_until(lambda: relay.log("reloaded"), PATIENCE)


def test_a_socket_that_is_no_listeners_stops_the_start(relay: Installed) -> None:
    relay.drop_in("[Socket]\nListenStream=0.0.0.0:9999\n", "relay.socket")
    relay.drop_in("[Service]\nRestart=no\n")
    relay.start("relay.socket")
    relay.machine.systemctl("start", "relay", check=False)
    assert relay.machine.show("ExecMainStatus") == "1"
    said = relay.machine.journal()
    assert "relay: systemd's socket \"relay.socket\" at 0.0.0.0:9999 is no listener's" in said
    assert "ListenStream=" in said
