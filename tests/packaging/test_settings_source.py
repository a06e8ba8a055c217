"""relay-settings.service and its timer on a real systemd: the first boot, live changes, what is broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.packaging.installed import PATIENCE, Installed
from tests.support.clients import receive
from tests.support.observe import Metrics, wait_until
from tests.support.programs import ROOT

pytestmark = [pytest.mark.packages, pytest.mark.timeout(300)]  # the first one may have to make the machine's root

METADATA = 8999  # port
QUICK = "[Timer]\nOnBootSec=\nOnUnitInactiveSec=1\nRandomizedDelaySec=0\n"  # an empty one takes all back


class Azure:
    """The machine's metadata service, on its loopback."""

    def __init__(self, relay: Installed) -> None:
        self._relay = relay
        # Its files are those of this machine, its network is the other one's.
        self.process = subprocess.Popen(
            ["nsenter", "-t", str(relay.machine.leader), "-n",
             sys.executable, "-m", "tests.support.metadata_server", str(METADATA)],
            cwd=ROOT, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()

    def publish(self, text: str) -> None:
        """Set the user data."""
        assert self._relay.request(METADATA, "/control/user_data", "PUT", text.encode())[0] == 204

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def azure(relay: Installed) -> Iterator[Azure]:
    service = Azure(relay)
    relay.machine.write("/etc/default/relay", f"RELAY_AZURE__METADATA_URL={service.url}\n")
    yield service
    service.end()


def boot(relay: Installed) -> None:
    """Start what a boot starts, in one transaction as a boot has it."""
    relay.drop_in(QUICK, "relay-settings.timer")
    relay.machine.systemctl("daemon-reload")
    relay.machine.systemctl("enable", "relay.service", "relay-settings.service", "relay-settings.timer")
    relay.machine.systemctl("start", "--no-block", "multi-user.target", "timers.target")


def health(relay: Installed, path: str = "/healthz") -> tuple[int, str]:
    """An answer of the health port; status 0 if there is none."""
    try:
        return relay.request(8080, path)
    except OSError:
        return 0, ""


def wait_unhealthy(relay: Installed, reason: str) -> None:
    """Until the health port says so."""

    def look() -> bool:
        status, text = health(relay)
        body: dict[str, Any] = json.loads(text) if status == 200 else {}
        source = body.get("settings_source", {})
        return body.get("ApplicationHealthState") == "Unhealthy" and reason in source.get("error", "")

    wait_until(look, PATIENCE, lambda: f"{reason}: {health(relay)} {relay.machine.journal('-u', 'relay-settings')}")


def wait_healthy(relay: Installed) -> None:
    wait_until(lambda: '"Healthy"' in health(relay)[1], PATIENCE, lambda: relay.machine.journal("-n", "60"))


def source(relay: Installed) -> dict[str, Any]:
    found: dict[str, Any] = relay.status()["settings_source"] or {}
    return found


def passes(client: socket.socket, data: bytes) -> bool:
    client.sendall(data)
    return receive(client, len(data)) == data


def test_a_first_boot_and_what_is_published_after_it(relay: Installed, azure: Azure) -> None:
    machine = relay.machine
    machine.run("rm", "/etc/relay/relay.toml")
    boot(relay)
    wait_unhealthy(relay, "user data: empty")
    assert health(relay, "/livez")[0] == 200
    assert health(relay, "/readyz")[0] == 503
    assert "no valid settings yet: user data: empty" in health(relay, "/readyz")[1]
    assert machine.show("ActiveState", "relay-settings.service") == "activating"
    assert machine.show("ActiveState") == "inactive"
    azure.publish("#cloud-config\nruncmd: []\n")
    wait_unhealthy(relay, "cloud-init")
    azure.publish(relay.settings())
    wait_healthy(relay)
    wait_until(relay.echoes, PATIENCE)
    assert machine.run("stat", "-c", "%a %U", "/etc/relay/relay.toml").strip() == "644 root"
    wait_until(lambda: source(relay).get("up") is True, PATIENCE)
    first, pid = relay.status()["settings_hash"], relay.pid
    with machine.connect(("127.0.0.1", 443), PATIENCE) as client:
        assert passes(client, b"before")
        azure.publish(relay.settings("[timeouts]\nidle = 900.0\n"))
        wait_until(lambda: relay.status()["settings_hash"] != first, PATIENCE)
        assert passes(client, b"after the reload")
        azure.publish(relay.settings("[timeouts]\nidel = 900.0\n"))
        wait_until(lambda: source(relay).get("up") is False, PATIENCE)
        assert Metrics(relay.get("/metrics")).value("relay_settings_source_up") == 0
        assert '"Healthy"' in health(relay)[1]
        assert "timeouts.idel" in health(relay)[1]
        assert health(relay, "/readyz")[0] == 200
        runs = machine.show("NextElapseUSecMonotonic", "relay-settings.timer")
        wait_until(lambda: machine.show("NextElapseUSecMonotonic", "relay-settings.timer") != runs, PATIENCE)
        assert passes(client, b"last good")
    assert (relay.pid, relay.restarts) == (pid, 0)
    said = machine.journal("-u", "relay-settings").splitlines()
    assert len([line for line in said if "timeouts.idel" in line]) == 1, said
    assert not [line for line in said if "Starting" in line], said
    (line,) = relay.log("settings source fails")
    assert "timeouts.idel" in line["error"]
    assert machine.show("Result", "relay-settings.service") == "success"


def test_a_boot_without_a_metadata_service_has_the_last_good_settings(relay: Installed, azure: Azure) -> None:
    azure.end()
    boot(relay)
    wait_healthy(relay)
    wait_until(relay.echoes, PATIENCE)
    wait_until(lambda: source(relay).get("up") is False, PATIENCE)
    assert "metadata service" in source(relay)["error"]


def test_settings_that_cloud_init_has_written_do_for_a_first_boot(relay: Installed, azure: Azure) -> None:
    """As custom data with write_files; user data is cloud-init's own or not there."""
    azure.publish("#cloud-config\n")
    boot(relay)
    wait_healthy(relay)
    wait_until(lambda: "cloud-init" in source(relay).get("error", ""), PATIENCE)
    assert relay.echoes()


def test_a_relay_that_an_operator_has_stopped_stays_stopped(relay: Installed, azure: Azure) -> None:
    azure.publish(relay.settings())
    boot(relay)
    wait_until(lambda: relay.machine.show("SubState") == "running", PATIENCE)
    wait_until(lambda: source(relay).get("up") is True, PATIENCE)
    relay.machine.systemctl("stop", "relay.service")
    azure.publish(relay.settings("[timeouts]\nidle = 900.0\n"))
    wait_until(lambda: "idle" in relay.machine.run("cat", "/etc/relay/relay.toml"), PATIENCE)
    assert relay.machine.show("ActiveState") == "inactive"


def test_the_unit_has_next_to_no_power(relay: Installed, azure: Azure) -> None:
    relay.machine.run("rm", "/etc/relay/relay.toml")
    boot(relay)
    wait_unhealthy(relay, "user data: empty")
    found = relay.process(int(relay.machine.show("MainPID", "relay-settings.service")))
    capabilities = {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")}
    assert capabilities == {1 << 10}, found  # CAP_NET_BIND_SERVICE
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
