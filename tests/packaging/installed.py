"""relay installed in a machine: the units of deploy/systemd, settings, drop-ins, and what it answers."""

from __future__ import annotations

import http.client
import json
from types import TracebackType
from typing import Any, Self

from tests.packaging.machine import Machine
from tests.support.clients import TIMEOUT, receive
from tests.support.observe import wait_until
from tests.support.programs import ROOT

Json = dict[str, Any]

UNITS = "/etc/systemd/system"
SETTINGS_UNITS = ("relay-settings.timer", "relay-settings.service")  # in the order in which they are stopped
PORTS = {"https": 443, "mqtt": 8883, "amqp": 5671}
PATIENCE = 30.0  # seconds that a start, a stop or a replacement may take
SETTINGS = """\
workers = 2
[health_check]
interval = 0.0
[drain]
announce = 0.0
window = 0.5
"""


def listeners(upstream: tuple[str, int], ports: dict[str, int]) -> str:
    """TOML: a listener for each port, both families, all in front of the same upstream."""
    return "".join(
        f'[[listeners]]\nname = "{name}"\nbind = ["0.0.0.0:{port}", "[::]:{port}"]\n'
        f'upstream = ["{upstream[0]}:{upstream[1]}"]\n'
        for name, port in ports.items()
    )


class Installed:
    """The units in a machine, for one test; whatever it has changed is taken back."""

    def __init__(self, machine: Machine, upstream: tuple[str, int]) -> None:
        self.machine = machine
        self._upstream = upstream
        self._units = {"relay.service", "relay.socket", *SETTINGS_UNITS}

    def __enter__(self) -> Self:
        for name in self._units:
            self.machine.write(f"{UNITS}/{name}", (ROOT / "deploy/systemd" / name).read_text())
        self.configure()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        machine = self.machine
        # At once, whatever state it is in; nobody minds the connections.
        machine.systemctl("stop", *SETTINGS_UNITS)
        machine.systemctl("kill", "--signal=SIGKILL", "--kill-whom=all", "relay.service", check=False)
        machine.systemctl("stop", *(unit for unit in self._units if unit.endswith(".socket")), "relay.service")
        machine.systemctl("reset-failed", check=False)
        machine.run("sh", "-c", f"rm -rf {UNITS}/relay* {UNITS}/*.wants/relay* /etc/default/relay /run/relay-settings")
        machine.systemctl("daemon-reload")
        machine.run("journalctl", "--rotate", "--vacuum-size=1")  # by time, the last second would stay

    # --- what an operator writes ------------------------------------------------------------------------------------

    def configure(self, more: str = "", *, ports: dict[str, int] = PORTS, upstream: str = "") -> None:
        """Settings; `more` goes in front of the listeners, or is a table with a name that SETTINGS has not."""
        self.machine.write("/etc/relay/relay.toml", self.settings(more, ports=ports, upstream=upstream))

    def settings(self, more: str = "", *, ports: dict[str, int] = PORTS, upstream: str = "") -> str:
        """The text that `configure` writes."""
        return SETTINGS + more + listeners((upstream, 9) if upstream else self._upstream, ports)

    def drop_in(self, text: str, unit: str = "relay.service") -> None:
        """What `systemctl edit` would write."""
        self.machine.write(f"{UNITS}/{unit}.d/test.conf", text)

    def unit(self, name: str, text: str) -> None:
        """Another unit."""
        self._units.add(name)
        self.machine.write(f"{UNITS}/{name}", text)

    def start(self, *units: str) -> None:
        """Start units, in that order: relay.service, or those."""
        self.machine.systemctl("daemon-reload")
        for unit in units or ("relay.service",):
            self.machine.systemctl("start", unit)

    # --- what it does -----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The supervisor's, inside the machine."""
        return int(self.machine.show("MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.machine.show("NRestarts"))

    def pids(self) -> list[int]:
        """Every process of the service, inside the machine."""
        return [self.pid, *(worker["pid"] for worker in self.status()["workers"])]

    def process(self, pid: int) -> dict[str, str]:
        """/proc/PID/status."""
        lines = self.machine.run("cat", f"/proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def status(self) -> Json:
        """GET /status. Raises OSError."""
        found: Json = json.loads(self.get("/status"))
        return found

    def get(self, path: str) -> str:
        """A page of the admin port. Raises OSError."""
        return self.request(8414, path)[1]

    def request(self, port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
        """Status and text of an answer from a port on the machine's loopback. Raises OSError."""
        connection = http.client.HTTPConnection("relay")
        connection.sock = self.machine.connect(("127.0.0.1", port))
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def log(self, event: str) -> list[Json]:
        """The lines of its log about that, of every run in this test."""
        lines = (line for line in self.machine.journal().splitlines() if line.startswith("{"))
        return [line for line in map(json.loads, lines) if line.get("event") == event]

    def echoes(self, port: int = 443, host: str = "127.0.0.1", timeout: float = TIMEOUT) -> bool:
        """Whether bytes pass, there and back. Raises OSError if there is no connection."""
        data = f"hello {host} {port}".encode()
        with self.machine.connect((host, port), timeout) as client:
            client.sendall(data)
            return receive(client, len(data)) == data

    def wait_ready(self, restarts: int) -> None:
        """Until systemd has started it again so many times, and says that it is up."""
        wait_until(
            lambda: self.restarts == restarts and self.machine.show("SubState") == "running",
            PATIENCE,
            lambda: f"restart {restarts}: {self.machine.systemctl('status', 'relay.service', check=False)}",
        )
