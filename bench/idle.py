"""The cost of idle connections: CPU while they are silent, and memory of the process and of the kernel.

The kernel's memory is the slab caches' use (/proc/slabinfo, which only root may read): sockets, files, and the entries
of epoll or the ring for each of them. The sockets of client and upstream are on the same machine, so the memory of a
direct connection between them is subtracted.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.peers import LOAD_CPU, Bench, Peer

CONNECTIONS = 4000  # for memory
SILENT = 1000  # for CPU
MEASURED = 5.0  # seconds of silence
QUIET = 12.0  # seconds of silence before memory is read: by then relay keeps silent connections in a cheaper way
SETTLED = 1.0  # seconds until the kernel has freed memory that it frees late (RCU), and a proxy has settled
SLABINFO = Path("/proc/slabinfo")


@dataclass(frozen=True, slots=True)
class Idle:
    """One proxy's figures. Memory in KiB per connection; `kernel` is None where slabinfo cannot be read."""

    cpu_percent: float
    process: float
    kernel: float | None


def measure(bench: Bench, peer: Peer, direct: float | None) -> Idle:
    """Measure one proxy, which must have relayed before. `direct` is the result of `direct_kernel`."""
    with connections(bench, peer.echo, SILENT):
        time.sleep(2 * SETTLED)
        used, start = peer.cpu_seconds(), time.monotonic()
        time.sleep(MEASURED)
        cpu = (peer.cpu_seconds() - used) / (time.monotonic() - start)
    time.sleep(SETTLED)
    kernel_before, process_before = kernel_kib(), peer.memory_kib()
    with connections(bench, peer.echo, CONNECTIONS):
        time.sleep(QUIET)
        process = (peer.memory_kib() - process_before) / CONNECTIONS
        kernel_after = kernel_kib()
    kernel = None
    if kernel_before is not None and kernel_after is not None and direct is not None:
        kernel = (kernel_after - kernel_before) / CONNECTIONS - direct
    return Idle(cpu * 100, process, kernel)


def direct_kernel(bench: Bench) -> float | None:
    """The kernel's KiB per connection without a proxy; None where slabinfo cannot be read."""
    with connections(bench, bench.upstream_echo, SILENT):
        pass
    time.sleep(SETTLED)
    before = kernel_kib()
    with connections(bench, bench.upstream_echo, CONNECTIONS):
        time.sleep(SETTLED)
        after = kernel_kib()
    return (after - before) / CONNECTIONS if before is not None and after is not None else None


@contextlib.contextmanager
def connections(bench: Bench, port: int, count: int) -> Iterator[None]:
    """Open `count` connections and pass one message there and back on each."""
    command = ["taskset", "-c", str(LOAD_CPU), str(bench.load), "idle", str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


def kernel_kib() -> float | None:
    """The memory in use in all slab caches, slabinfo(5): second times fourth column."""
    try:
        lines = SLABINFO.read_text().splitlines()[2:]
    except PermissionError:
        return None
    columns = [line.split() for line in lines]
    return sum(int(fields[1]) * int(fields[3]) for fields in columns) / 1024
