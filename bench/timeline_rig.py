"""The processes of the timeline: two relays, the hub and the devices; started, watched and ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.flood import free_ports
from bench.peers import wait_for_port
from bench.timeline_load import HUB, Task
from bench.watch import Watch
from relay.demo import certificates
from relay.demo.process import environment, tail, tied

ROOT = Path(__file__).parent.parent
PROCESSES = 2  # of devices
PATIENCE = 30.0  # timeout in seconds for what should come soon
ENDING = 10.0  # seconds that a process gets to end
CONFIG = """\
workers = 2
[admin]
bind = "127.0.0.1:{admin}"
[health]
bind = "127.0.0.1:{health}"
[limits]
max_connections = {limit}
[drain]
announce = {announce}
window = {window}
[azure]
scheduled_events = {evictable}
metadata_url = "{metadata}"
[[listeners]]
name = "mqtts"
bind = ["127.0.0.1:{port}"]
upstream = {upstream}
max_connections = {limit}
"""


class Relay:
    """One relay: its settings, its process and its status."""

    def __init__(self, folder: Path, name: str, **values: Any) -> None:
        self.admin, self.health, self.port = free_ports(3)
        self.name = name
        self.config = folder / f"{name}.toml"
        self.watch = Watch(self.admin)
        self.process: subprocess.Popen[str] | None = None
        self._values = values

    def write(self, **values: Any) -> None:
        """Write the settings file with these values changed."""
        fields = {"admin": self.admin, "health": self.health, "port": self.port, **self._values, **values}
        self.config.write_text(CONFIG.format(**{**fields, "upstream": json.dumps(fields["upstream"])}))

    def post(self, path: str) -> None:
        """POST an order. Raises SystemExit with the relay's reason if it refuses."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method="POST")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"timeline: {path}: {error.read().decode()}") from None

    def workers(self) -> list[int]:
        """Process ids of the ready workers."""
        return [worker["pid"] for worker in self.watch.status()["workers"] if worker["ready"]]

    def phase(self) -> str:
        """The phase of its drain."""
        drain = self.watch.status()["drain"]
        return str(drain["phase"]) if drain else "serving"


class Fleet:
    """The processes of the devices, with the last report of each."""

    def __init__(self, processes: list[subprocess.Popen[str]], connections: int) -> None:
        self._processes = processes
        self._connections = connections
        self._last: list[dict[str, Any]] = [{} for _ in processes]
        for number, process in enumerate(processes):
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._last[number] = json.loads(line)

    def open(self) -> list[int]:
        """Connections on each relay, as the devices see them."""
        return [sum(last.get("open", [0, 0])[where] for last in self._last) for where in (0, 1)]

    def count(self, what: str) -> int:
        """A total over the last reports (`Fleet._report` in the devices' processes)."""
        return sum(last.get(what, 0) for last in self._last)

    def complete(self) -> bool:
        """Whether every device is connected."""
        if any(process.poll() is not None for process in self._processes):
            raise SystemExit("timeline: the devices have ended")
        return sum(self.open()) >= self._connections

    def fresh(self, since: float) -> bool:
        """Whether every process has reported since that time (monotonic seconds)."""
        return all(last.get("at", 0.0) >= since for last in self._last)

    def finish(self) -> None:
        """Send no more messages, and wait for the acknowledgements."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("finish\n")
            process.stdin.flush()
        for process in self._processes:
            process.wait(PATIENCE)


class Rig:
    """Starts all processes; `close` ends them in reverse order."""

    def __init__(self, folder: Path, metadata: str, connections: int, rate: float, every: float, newcomers: float):
        self._folder = folder
        self._stack = contextlib.ExitStack()
        made = certificates.create(folder, HUB)
        ports = free_ports(2)
        self.upstreams = [f"127.0.0.1:{port}" for port in ports]
        self._arrived = folder / "hub.bin"
        arguments = (str(made.server), str(self._arrived), *map(str, ports))
        self._hub = self._start("hub", None, "bench.timeline_upstream", *arguments)
        common = {"limit": connections + 1000, "upstream": self.upstreams, "metadata": metadata}
        self.relays = [
            Relay(folder, "relay", announce=2.0, window=20.0, evictable="false", **common),
            Relay(folder, "sibling", announce=15.0, window=60.0, evictable="true", **common),  # as by default
        ]
        try:
            for port in ports:
                wait_for_port(port)
            for relay in self.relays:
                relay.write()
                command = ("relay", "run", "--config", str(relay.config))
                relay.process = self._start(relay.name, signal.SIGINT, *command)
            for relay in self.relays:
                relay.watch.ready()
            tasks = self._tasks(str(made.authority), connections, rate, every, newcomers)
            devices = [
                self._start(f"devices{number}", None, "bench.timeline_load", json.dumps(asdict(task)))
                for number, task in enumerate(tasks)
            ]
        except BaseException:
            self.close()
            raise
        self.fleet = Fleet(devices, connections)
        self.sent = [Path(task.record) for task in tasks]

    def _tasks(self, authority: str, connections: int, rate: float, every: float, newcomers: float) -> list[Task]:
        firsts = [connections * number // PROCESSES for number in range(PROCESSES + 1)]
        return [
            Task(
                ports=[relay.port for relay in self.relays],
                health=[relay.health for relay in self.relays],
                authority=authority,
                record=str(self._folder / f"devices{number}.json"),
                first=first,
                devices=after - first,
                rate=rate / PROCESSES,
                every=every,
                newcomers=newcomers / PROCESSES,
            )
            for number, (first, after) in enumerate(itertools.pairwise(firsts))
        ]

    def arrived(self) -> Path:
        """End the hub, so that it writes its record."""
        _end(self._hub, None)
        return self._arrived

    def logs(self) -> str:
        """The end of each process's log."""
        return "\n".join(f"{path.name}:\n{tail(path)}" for path in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def _start(self, name: str, end: signal.Signals | None, module: str, *arguments: str) -> subprocess.Popen[str]:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            tied([sys.executable, "-m", module, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name.startswith("devices") else log,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**environment(), "PYTHONPATH": str(ROOT)},
        )
        self._stack.callback(_end, process, end)
        return process


def _end(process: subprocess.Popen[str], how: signal.Signals | None) -> None:
    """End a process by a signal or by closing its standard input; kill it if that takes too long."""
    if process.poll() is None and how is not None:
        process.send_signal(how)
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
