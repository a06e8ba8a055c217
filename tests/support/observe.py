"""Looking at something until it is as it should be: the wait of every test, a scrape, processes in /proc.

A test never sleeps for as long as something probably takes; it waits for the state that it needs, with a deadline.
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

PATIENCE = 10.0  # seconds for anything that must come about
POLL = 0.01  # seconds between two looks

TCP_INFO = struct.Struct("8B24I")  # linux/tcp.h, as far as tcpi_total_retrans

T = TypeVar("T")
Key = tuple[str, frozenset[tuple[str, str]]]


def wait_until(look: Callable[[], T], timeout: float = PATIENCE, what: str | Callable[[], str] = "") -> T:
    """Look again and again until the answer is true, and return it. AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := look()):
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout:g} s: {text or look}; last answer {answer!r}")
        time.sleep(POLL)
    return answer


def tcp_ports(state: str) -> list[tuple[int, int]]:
    """Local and remote port of the IPv4 sockets in a state of net/tcp_states.h, in hexadecimal as proc(5) has it."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [[int(address.rpartition(":")[2], 16) for address in row[1:3]] for row in rows if row[3] == state]
    return [(local, remote) for local, remote in ports]


def sent_again(client: socket.socket) -> int:
    """How many segments of a TCP socket the kernel has had to send twice so far, SYNs included."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
    return int(TCP_INFO.unpack(info)[-1])


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors(pid: int) -> list[int]:
    """The open descriptors of a process, sorted; none when it is gone."""
    try:
        return sorted(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextlib.contextmanager
def room_for(pid: int, more: int) -> Iterator[None]:
    """Let a process have only `more` descriptors beyond those that it has."""
    used = descriptors(pid)
    free = [number for number in range(used[-1] + more + 2) if number not in used]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[more], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def resident_bytes(pid: int) -> int:
    """The memory of a process that is its own alone or its share of what it has in common with others (Pss)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{pid}/smaps_rollup has no Pss")


class Metrics:
    """One scrape."""

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
        """How many connections of a listener ended how, without those that none did."""
        found = {}
        for (name, labels), value in self.samples.items():
            pairs = dict(labels)
            if name == "relay_connections_total" and pairs["listener"] == listener and value:
                found[pairs["outcome"]] = int(value)
        return found

    def counters(self) -> dict[Key, float]:
        """Every sample that may never go back."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.samples.items() if key[0].endswith(endings)}
