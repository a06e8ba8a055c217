"""Thousands of TLS connections through a real relay while it is drained, reloaded, loses a worker, and is evicted.

    python -m bench.timeline [--connections 5000]        (or: make timeline)

Two relays with two workers each, on loopback: devices begin on the first, which is drained (then undrained), and find
themselves on its sibling, which is reloaded again and again, loses a worker to SIGKILL, and is evicted by a stand-in
metadata service with 30 s notice. At NotBefore all its processes are killed, as the platform would. Two processes are
the devices (`bench.timeline_load`), two the hub (`bench.timeline_upstream`), and both record each message, so that what
was lost is counted, not guessed. The picture and the figures are written at the end. Takes less than three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from bench import timeline_picture
from bench.flood import free_ports
from bench.peers import describe, wait_for_port
from bench.timeline_figures import Happening, figures, read, table
from bench.timeline_load import HUB, Task
from bench.watch import Watch
from relay.demo import certificates
from relay.demo.process import environment, tied
from tests.metadata_server import OWN, Answer, MetadataServer, document, event

ROOT = Path(__file__).parent.parent
PROCESSES = 2  # of devices, and of the hub
QUIET = 4.0  # seconds between two events
PATIENCE = 30.0  # seconds for what should come soon
RELOADING = 10.0  # seconds
NOTICE = 30.0  # seconds; what a Spot machine gets
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
    """One relay: its settings, its process, what it says of itself."""

    def __init__(self, folder: Path, name: str, **values: Any) -> None:
        self.admin, self.health, self.port = free_ports(3)
        self._values = values
        self.config, self.log = folder / f"{name}.toml", folder / f"{name}.log"
        self.watch = Watch(self.admin)

    def write(self, **values: Any) -> None:
        """The settings file, with these instead of others."""
        fields = {"admin": self.admin, "health": self.health, "port": self.port, **self._values, **values}
        self.config.write_text(CONFIG.format(**{**fields, "upstream": json.dumps(fields["upstream"])}))

    def post(self, path: str) -> None:
        """An order; the text of a refusal is the error."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method="POST")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"timeline: {path}: {error.read().decode()}") from None

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.watch.status()["workers"] if worker["ready"]]

    def phase(self) -> str:
        drain = self.watch.status()["drain"]
        return str(drain["phase"]) if drain else "serving"


class Fleet:
    """The processes of the devices, and the last line of each."""

    def __init__(self, processes: list[subprocess.Popen[str]], connections: int) -> None:
        self.processes = processes
        self.connections = connections
        self._last: list[dict[str, Any]] = [{} for _ in processes]
        for number, process in enumerate(processes):
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._last[number] = json.loads(line)

    def open(self) -> list[int]:
        return [sum(last.get("open", [0, 0])[where] for last in self._last) for where in (0, 1)]

    def count(self, what: str) -> int:
        return sum(last.get(what, 0) for last in self._last)

    def complete(self) -> bool:
        if any(process.poll() is not None for process in self.processes):
            raise SystemExit("timeline: the devices have ended")
        return sum(self.open()) >= self.connections

    def finish(self) -> None:
        for process in self.processes:
            process.communicate("finish\n", timeout=PATIENCE)


class Timeline:
    """The run: one event after the other, each with its beginning and its end."""

    def __init__(self, fleet: Fleet, relays: list[Relay], processes: list[subprocess.Popen[str]]) -> None:
        self._fleet = fleet
        self._relay, self._sibling = relays
        self._evicted = processes[1]
        self._began = time.monotonic()
        self._said = 0.0
        self._acked = 0
        self.happenings: list[Happening] = []

    def wait(self, what: str, over: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Until it is over; a line each second."""
        deadline = time.monotonic() + seconds
        while not over():
            now = time.monotonic()
            if now > deadline:
                raise SystemExit(f"timeline: {what}: not after {seconds:g} s")
            if now >= self._said + 1:
                acked, first = self._fleet.count("acked"), self._fleet.open()
                pace = (acked - self._acked) / (now - self._said) if self._said else 0.0
                self._said, self._acked = now, acked
                print(
                    f"{now - self._began:6.1f} s  {what:<28} relay {first[0]:>6,}  sibling {first[1]:>6,}  "
                    f"acknowledged {pace:>6,.0f}/s  closed {self._fleet.count('closed'):>7,}  "
                    f"refused {self._fleet.count('refused')}  failed {self._fleet.count('failed')}",
                    flush=True,
                )
            time.sleep(0.05)

    def rest(self, seconds: float = QUIET) -> None:
        """Everybody is back, and then it is quiet for a while."""
        self.wait("everybody comes back", self._fleet.complete)
        until = time.monotonic() + seconds
        self.wait("quiet", lambda: time.monotonic() >= until)

    def happen(self, name: str, title: str, where: int, do: Callable[[], str]) -> None:
        """One event, which ends once everybody is back."""
        before, began = self._fleet.open()[where], time.monotonic()
        said = do()
        until = time.monotonic()
        self.rest()
        self.happenings.append(Happening(name, title, where, before, began, until, time.monotonic(), said))

    def drain(self) -> str:
        began = time.monotonic()
        self._relay.post("/drain")
        self.wait("drain", lambda: self._relay.phase() == "drained", 60)
        seconds = time.monotonic() - began
        self._relay.post("/undrain")
        return f"drained after {seconds:.1f} s, then undrained"

    def reload(self, settings: list[dict[str, Any]]) -> str:
        until, count = time.monotonic() + RELOADING, 0
        while time.monotonic() < until:
            self._sibling.write(**settings[count % len(settings)])
            self._sibling.post("/reload")
            count += 1
            self.wait("reload", lambda: True)
            time.sleep(0.1)
            self.wait("reload", lambda: self._fleet.complete() or True)
        return f"{count} reloads"

    def kill(self) -> str:
        before = self._sibling.pids()
        os.kill(before[0], signal.SIGKILL)
        began = time.monotonic()

        def replaced() -> bool:
            pids = self._sibling.pids()
            return len(pids) == len(before) and before[0] not in pids

        self.wait("a worker is killed", replaced)
        return f"another worker serves after {time.monotonic() - began:.1f} s"

    def evict(self, metadata: MetadataServer) -> str:
        notice = event("Preempt", OWN, left=NOTICE)
        not_before = parsedate_to_datetime(notice["NotBefore"]).timestamp()
        pids = [*self._sibling.pids(), self._evicted.pid]
        began, approved = time.monotonic(), ""
        metadata.events.play(Answer(document(notice)))
        while time.time() < not_before:
            self.wait("eviction", lambda: bool(metadata.approved) or time.time() >= not_before, 60)
            if metadata.approved and not approved:
                approved = f"empty, and approved, after {time.monotonic() - began:.1f} s of {NOTICE:g}"
            time.sleep(0.05)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return approved or "not approved in time"


def run(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Start everything, let it happen, count."""
    count, hubs = options.connections, free_ports(PROCESSES)

    def start(end: signal.Signals | None, name: str, *command: str) -> subprocess.Popen[str]:
        log = stack.enter_context((folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            tied([sys.executable, *command]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name.startswith("devices") else log,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**environment(), "PYTHONPATH": str(ROOT)},
        )
        stack.callback(stop, process, end)
        return process

    made = certificates.create(folder, HUB)
    upstreams = [
        start(None, f"hub{n}", "-m", "bench.timeline_upstream", str(port), str(made.server), str(folder / f"hub{n}"))
        for n, port in enumerate(hubs)
    ]
    metadata = stack.enter_context(MetadataServer())
    both = [f"127.0.0.1:{port}" for port in hubs]
    common = {"limit": count + 1000, "upstream": both, "metadata": metadata.url}
    relays = [
        Relay(folder, "relay", announce=2.0, window=20.0, evictable="false", **common),
        Relay(folder, "sibling", announce=15.0, window=60.0, evictable="true", **common),  # as they are by default
    ]
    for port in hubs:
        wait_for_port(port)
    running = []
    for relay in relays:
        relay.write()
        running.append(start(signal.SIGINT, relay.log.stem, "-m", "relay", "run", "--config", str(relay.config)))
    for relay in relays:
        relay.watch.ready()
    tasks = [
        Task(
            ports=[relay.port for relay in relays],
            health=[relay.health for relay in relays],
            authority=str(made.authority),
            record=str(folder / f"devices{n}.json"),
            first=count * n // PROCESSES,
            devices=count * (n + 1) // PROCESSES - count * n // PROCESSES,
            rate=options.rate / PROCESSES,
            every=options.every,
            newcomers=options.newcomers / PROCESSES,
        )
        for n in range(PROCESSES)
    ]
    devices = [
        start(None, f"devices{n}", "-m", "bench.timeline_load", json.dumps(asdict(task)))
        for n, task in enumerate(tasks)
    ]
    timeline = Timeline(Fleet(devices, count), relays, running)
    timeline.wait("devices come", timeline._fleet.complete, count / options.rate + PATIENCE)
    timeline.rest()
    return {}


def stop(process: subprocess.Popen[str], end: signal.Signals | None) -> None:
    """End it: by a signal, or with its standard input."""


def main() -> int:
    return 0
