"""What connections cost that do nothing: CPU while they are silent, and memory, the process's and the kernel's.

The kernel's memory is what its slab caches have in use (/proc/slabinfo, which only root may read): sockets, files, and
whatever epoll or the ring keeps for each of them. The client's and the upstream's own sockets are on the same machine,
so what a connection takes that goes straight to the upstream is taken off.
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
QUIET = 12.0  # seconds that connections have been silent when memory is read: relay then keeps them in a cheaper way
SETTLED = 1.0  # seconds until the kernel has given back what it gives back late (RCU), and a proxy has settled
SLABINFO = Path("/proc/slabinfo")


@dataclass(frozen=True, slots=True)
class Idle:
    """Of one proxy. KiB per connection; `kernel` is None where it cannot be read."""

    cpu_percent: float
    process: float
    kernel: float | None


def measure(bench: Bench, peer: Peer, direct: float | None) -> Idle:
    """A proxy's figures; `direct` is what `direct_kernel` gave. The proxy must have worked before."""
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
    """The kernel's KiB per connection without any proxy; None where it cannot be read."""
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
    """So many connections on which one message went there and back, and then nothing."""
    command = ["taskset", "-c", str(LOAD_CPU), str(bench.load), "idle", str(port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


def kernel_kib() -> float | None:
    """What all slab caches have in use, slabinfo(5): the second and the fourth column."""
    try:
        lines = SLABINFO.read_text().splitlines()[2:]
    except PermissionError:
        return None
    columns = [line.split() for line in lines]
    return sum(int(fields[1]) * int(fields[3]) for fields in columns) / 1024
