"""What the checks do on a machine: a stand-in hub, and relay or HAProxy in front of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testinfra.host import Host

PORTS = (443, 8883, 5671)
PATIENCE = 240.0  # seconds for anything that has to come; a machine that is emulated is slow
NAME = "standin.azure-devices.net"
FOLDER = "/run/relay-check"
PEERS = f"{FOLDER}/peers.py"
SETTINGS = """\
upstream = ["{hub}"]
[health_check]
interval = 1.0
rise = 1
[drain]
announce = 2.0
window = 6.0
"""


def wait(condition: Callable[[], object], why: Callable[[], str] = str) -> None:
    """Until it holds; fails after PATIENCE seconds, with `why` it does not."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {why()}"
        time.sleep(0.2)


def sh(host: Host, command: str) -> str:
    """Standard output of a command that has to succeed."""
    done = host.run(command)
    assert done.rc == 0, f"{command}: {done.rc}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def write(host: Host, path: str, text: str) -> None:
    """A file, readable for all, with its folder."""
    coded = base64.b64encode(text.encode()).decode()
    sh(host, f"mkdir -p $(dirname {path}) && echo {coded} | base64 -d >{path} && chmod 644 {path}")


class Standin:
    """A hub in a network namespace of its own, joined to the machine by a pair of interfaces."""

    address = "10.199.0.2"

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self) -> None:
        """Returns once it listens."""
        self.remove()
        write(self._host, PEERS, Path(__file__).with_name("peers.py").read_text())
        sh(
            self._host,
            f"cd {FOLDER} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            f"-keyout key.pem -out cert.pem -subj /CN={NAME} -addext subjectAltName=DNS:{NAME} 2>/dev/null",
        )
        for line in (
            "ip netns add standin",
            "ip link add standin0 type veth peer name eth0 netns standin",
            "ip address add 10.199.0.1/30 dev standin0",
            "ip link set standin0 up",
            f"ip -n standin address add {self.address}/30 dev eth0",
            "ip -n standin link set eth0 up",
            "ip -n standin link set lo up",
        ):
            sh(self._host, line)
        ports = " ".join(map(str, PORTS))
        sh(
            self._host,
            "systemd-run --quiet --unit=standin --property=NetworkNamespacePath=/run/netns/standin "
            f"python3 {PEERS} hub {self.address} {FOLDER}/cert.pem {FOLDER}/key.pem {ports}",
        )
        wait(lambda: sh(self._host, "ip netns exec standin ss -Hltn").count("LISTEN") == len(PORTS))

    def remove(self) -> None:
        """Leave nothing of it."""
        for line in (
            "systemctl stop standin.service",
            "systemctl reset-failed standin.service",
            "ip link del standin0",
            "ip netns del standin",
            f"rm -rf {FOLDER}",
        ):
            self._host.run(line)


class Proxy:
    """A service in front of the hub."""

    unit: str
    listens: set[str]  # what `ss` shows of it, address and port
    announce: float  # seconds

    def __init__(self, host: Host) -> None:
        self.host = host

    def configure(self, hub: str) -> None:
        """Write what it needs to serve this hub."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop it, and take its configuration away."""
        raise NotImplementedError

    def restart(self) -> None:
        """Returns once it is ready."""
        sh(self.host, f"systemctl reset-failed {self.unit}; systemctl restart --no-block {self.unit}")
        self.wait_ready()

    def wait_ready(self) -> None:
        wait(lambda: self.status("/readyz") == 200, self.journal)

    def status(self, path: str) -> int:
        """Status of a health path; 0 if nothing answers."""
        line = f"curl --silent --output /dev/null --max-time 10 --write-out %{{http_code}} http://127.0.0.1:8080{path}"
        return int(self.host.run(line).stdout or 0)

    def show(self, name: str) -> str:
        """A property of its unit."""
        return sh(self.host, f"systemctl show --value --property={name} {self.unit}").strip()

    def journal(self, arguments: str = "") -> str:
        return sh(self.host, f"journalctl --no-pager --output=cat --unit={self.unit} {arguments}")

    def entries(self) -> list[dict[str, Any]]:
        """The journal's fields of each of its lines since it was started."""
        invocation = self.show("InvocationID")
        lines = sh(self.host, f"journalctl --no-pager --output=json _SYSTEMD_INVOCATION_ID={invocation}")
        return [json.loads(line) for line in lines.splitlines()]

    def talk(self, port: int) -> dict[str, Any]:
        """A connection through it to the hub, its certificate verified; what the client saw."""
        found: dict[str, Any] = json.loads(sh(self.host, f"python3 {PEERS} talk {NAME} {FOLDER}/cert.pem {port}"))
        return found

    def hold(self, port: int, count: int) -> Holding:
        """Connections that stay, all open."""
        return Holding(self.host, port, count)


class Holding:
    """Clients that wait for the other side to end their connections."""

    def __init__(self, host: Host, port: int, count: int) -> None:
        self._host = host
        self._result = f"{FOLDER}/held.json"
        host.run(f"systemctl stop held.service; systemctl reset-failed held.service; rm -f {self._result}")
        sh(
            host,
            f"systemd-run --quiet --unit=held "
            f"python3 {PEERS} hold {NAME} {FOLDER}/cert.pem {port} {count} {self._result}",
        )
        wait(lambda: self.read().get("open") == count, lambda: str(host.run("journalctl -u held").stdout))

    def read(self) -> dict[str, Any]:
        """What they have written so far."""
        found: dict[str, Any] = json.loads(self._host.run(f"cat {self._result}").stdout or "{}")
        return found

    def ended(self) -> list[tuple[float, str]]:
        """Seconds after the first that ended, and how each ended; waits for the last."""
        wait(lambda: "ended" in self.read())
        return [(float(when), str(how)) for when, how in self.read()["ended"]]

    def let_go(self) -> None:
        """End them from the clients' side."""
        sh(self._host, "systemctl stop held.service")


class Relay(Proxy):
    unit = "relay.service"
    listens = {f"{host}:{port}" for host in ("0.0.0.0", "[::]") for port in PORTS} | {"0.0.0.0:8080", "127.0.0.1:8414"}
    announce = 2.0

    def configure(self, hub: str) -> None:
        # Not from user data: this machine's may be empty, or somebody else's.
        self.host.run("systemctl stop relay-settings.timer relay-settings.service")
        self.host.run("systemctl reset-failed relay-settings.service")  # a first boot's was under way
        write(self.host, "/etc/relay/relay.toml", SETTINGS.format(hub=hub))

    def remove(self) -> None:
        sh(self.host, f"systemctl stop {self.unit}; rm -f /etc/relay/relay.toml")
        self.host.run("systemctl start --no-block relay-settings.timer")


class HAProxy(Proxy):
    unit = "haproxy.service"
    listens = {f"{host}:{port}" for host in ("0.0.0.0", "[::]") for port in PORTS} | {"0.0.0.0:8080", "127.0.0.1:8405"}
    announce = 15.0

    def configure(self, hub: str) -> None:
        write(self.host, "/etc/haproxy/relay.env", f"HUB={hub}\n")

    def remove(self) -> None:
        sh(self.host, f"systemctl stop {self.unit}; rm -f /etc/haproxy/relay.env")
