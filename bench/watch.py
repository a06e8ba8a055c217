"""Watches a relay from outside while a soak runs: its status, descriptors and memory of its workers, and leaks."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

GROWTH_KIB = 4096  # growth allowed to a worker's memory after the warm-up, fragmentation included

Process = tuple[int, int, int]  # pid, descriptors, memory in KiB


class Watch:
    """Reads the relay's /status and its workers' /proc."""

    def __init__(self, admin: int) -> None:
        self._url = f"http://127.0.0.1:{admin}/status"

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            result: dict[str, Any] = json.load(answer)
        return result

    def processes(self) -> list[Process]:
        """(pid, descriptors, memory in KiB) of each worker."""
        return [
            (worker["pid"], descriptors(worker["pid"]), memory(worker["pid"])) for worker in self.status()["workers"]
        ]

    def ready(self, seconds: float = 30.0) -> None:
        """Wait until every worker serves and earlier connections have ended. Raises OSError if no relay answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.status()["state"] == "ready":
                    break
            time.sleep(0.1)
        self.settled()

    def settled(self, seconds: float = 30.0) -> dict[str, Any]:
        """The status once no connection is left, or the last one when the time is over."""
        deadline = time.monotonic() + seconds
        while (status := self.status())["connections"]["active"] and time.monotonic() < deadline:
            time.sleep(0.1)
        return status


def descriptors(pid: int) -> int:
    """The number of open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def memory(pid: int) -> int:
    """The memory of a process in KiB (proportional set size)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def leaks(watch: Watch, fresh: list[Process], warm: list[Process]) -> list[str]:
    """Print the figures; return what leaked, a line each, once all connections are over.

    `fresh` are the workers before the first connection, `warm` after a while; without it memory is compared with fresh.
    """
    problems = []
    status = watch.settled()
    connections, after = status["connections"], watch.processes()
    print(f"bytes up {status['bytes']['up']:,}, down {status['bytes']['down']:,}")
    print("outcomes", {label: count for label, count in connections["outcomes"].items() if count})
    ended = sum(connections["outcomes"].values())
    if connections["active"] or ended != connections["accepted"]:
        problems.append(f"{connections['accepted']} accepted, {ended} ended, {connections['active']} still open")
    if connections["admitted"]:
        problems.append(f"{connections['admitted']} places in the limits were not given back")
    for (pid, fds_before, _), (_, _, kib_warm), (now_pid, fds, kib) in zip(fresh, warm or fresh, after, strict=True):
        print(f"worker {pid}: descriptors {fds_before} before, {fds} after; {kib_warm:,} KiB warm, {kib:,} KiB after")
        if pid != now_pid:
            problems.append(f"worker {pid} died")
        if fds != fds_before:
            problems.append(f"worker {pid}: {fds - fds_before} descriptors leaked")
        if kib > kib_warm + GROWTH_KIB:
            problems.append(f"worker {pid}: memory grew by {kib - kib_warm:,} KiB")
    if any(worker["held_bytes"] for worker in status["workers"]):
        problems.append("bytes are still held")
    return problems


def tracebacks(log: Path) -> list[str]:
    """The defects of the relay that its log reports."""
    text = log.read_text(errors="replace")
    if "Traceback" not in text:
        return []
    return ["the relay's log has a traceback:\n" + text[text.index("Traceback") :][:2000]]


def errors(log: Path) -> list[str]:
    """Connections that ended with the error of a system call; on loopback none should."""
    with log.open(errors="replace") as lines:
        failed = [line for line in lines if '"event": "connection"' in line and '"error": null' not in line]
    return [f"{len(failed)} connections ended with an error, such as {failed[0].strip()}"] if failed else []
