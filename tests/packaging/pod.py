"""A pod's life, as the chart makes it: `python -m tests.packaging.pod RELAY_TOML CHANGED_TOML`, in a network namespace.

The settings are mounted as the kubelet mounts a ConfigMap: relay.toml is a symbolic link through `..data`, which is
renamed to change the content. relay has no capability. An echo at 127.0.0.1:9000 is its upstream. Prints what happened
as JSON; tests/packaging/test_chart.py looks at it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.support.observe import wait_until
from tests.support.programs import RELAY, START, command, environment, launched

UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
CAPLESS = [
    shutil.which("setpriv") or "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--no-new-privs",
]


class Volume:
    """A ConfigMap's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = 0

    def put(self, toml: str) -> None:
        self._versions += 1
        version = self.folder / f"..{self._versions}"
        version.mkdir(parents=True)
        (version / "relay.toml").write_text(toml)
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.folder / "..data")
        if self._versions == 1:
            (self.folder / "relay.toml").symlink_to("..data/relay.toml")


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body, or 0 while nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def echoes(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"hello")
        return client.recv(5) == b"hello"


def upstream() -> None:
    """An echo, for as long as this process lives."""
    listening = socket.create_server(("127.0.0.1", 9000))

    def serve(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(4096):
                sock.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def main() -> None:
    first, changed = (Path(name).read_text() for name in sys.argv[1:])
    seen: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume(Path(folder) / "relay")
        volume.put(first)
        config = volume.folder / "relay.toml"
        line = [*CAPLESS, *RELAY, "run", "--config", str(config)]

        UNPRIVILEGED.write_text("1024")
        refused = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=START)
        seen["without_sysctl"] = [refused.returncode, refused.stderr]

        UNPRIVILEGED.write_text("0")
        upstream()
        with (Path(folder) / "log").open("wb") as log:
            relay = subprocess.Popen(launched(line), env=environment(), stdout=log, stderr=log)
            wait_until(lambda: get(8080, "/readyz")[0] == 200, START, (Path(folder) / "log").read_text)
            status = Path(f"/proc/{relay.pid}/status").read_text()
            seen["capabilities"] = [
                row.split()[1] for row in status.splitlines() if row.startswith(("CapEff", "CapBnd"))
            ]
            seen["livez"] = get(8080, "/livez")[0]
            seen["echoes"] = echoes(443)

            volume.put(changed)
            seen["reload"] = command("reload", "--config", config).returncode
            metrics = get(8414, "/metrics")[1].splitlines()
            seen["limit"] = [row for row in metrics if row.startswith("relay_connections_limit ")]

            with socket.create_connection(("127.0.0.1", 443), timeout=5) as device:
                device.sendall(b"x")
                device.recv(1)
                os.kill(relay.pid, signal.SIGTERM)
                seen["draining"] = wait_until(lambda: [answer := get(8080, "/readyz")][0][0] == 503 and answer)
                seen["livez_draining"] = get(8080, "/livez")[0]
                seen["echoes_draining"] = echoes(443)
                seen["device"] = device.recv(1) == b""  # the end, and no reset
            seen["status"] = relay.wait(START)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
