"""Observations with a deadline: `wait_until`, a metrics scrape, sockets and processes in /proc.

A test never sleeps for a guessed time; it waits for the state that it needs.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 10.0  # deadline of a wait, in seconds
POLL = 0.01  # seconds between two calls of a condition

TCP_INFO = struct.Struct("8B24I")  # linux/tcp.h, as far as tcpi_total_retrans

T = TypeVar("T")
Key = tuple[str, frozenset[tuple[str, str]]]


def wait_until(look: Callable[[], T], timeout: float = PATIENCE, what: str | Callable[[], str] = "") -> T:
    """Call `look` until its result is true, and return that. Raises AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := look()):
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout:g} s: {text or look}; last answer {answer!r}")
        time.sleep(POLL)
    return answer


def tcp_ports(state: str) -> list[tuple[int, int]]:
    """Local and remote port of the IPv4 sockets in a TCP state: net/tcp_states.h, hexadecimal as in proc(5)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [[int(address.rpartition(":")[2], 16) for address in row[1:3]] for row in rows if row[3] == state]
    return [(local, remote) for local, remote in ports]


def sent_again(client: socket.socket) -> int:
    """The number of segments that the kernel has retransmitted on a TCP socket, SYNs included."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
    return int(TCP_INFO.unpack(info)[-1])


def alive(pid: int) -> bool:
    """Whether the process runs; False for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors(pid: int) -> list[int]:
    """The open descriptors of a process, sorted; empty if the process is gone."""
    try:
        return sorted(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextlib.contextmanager
def room_for(pid: int, more: int) -> Iterator[None]:
    """Limit a process to `more` descriptors beyond those that are open."""
    used = descriptors(pid)
    free = [number for number in range(used[-1] + more + 2) if number not in used]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[more], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def resident_bytes(pid: int) -> int:
    """The proportional set size (Pss) of a process: private memory and its share of shared memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{pid}/smaps_rollup has no Pss")


class Metrics:
    """One scrape of /metrics."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.samples: dict[Key, float] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, /, **labels: str) -> float:
        """The one sample with exactly these labels. Raises KeyError."""
        return self.samples[name, frozenset(labels.items())]

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The samples of that name by the value of one of their labels."""
        return {dict(labels)[label]: value for (sample, labels), value in self.samples.items() if sample == name}

    def labels(self, name: str) -> dict[str, str]:
        """The labels of the one sample of that name."""
        (found,) = (dict(labels) for sample, labels in self.samples if sample == name)
        return found

    def outcomes(self, listener: str = "main") -> dict[str, int]:
        """The number of connections of a listener by outcome, without zeros."""
        found = {}
        for (name, labels), value in self.samples.items():
            pairs = dict(labels)
            if name == "relay_connections_total" and pairs["listener"] == listener and value:
                found[pairs["outcome"]] = int(value)
        return found

    def counters(self) -> dict[Key, float]:
        """All samples that must never decrease."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.samples.items() if key[0].endswith(endings)}
