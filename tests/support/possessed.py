"""A compromised worker: a test sends messages and writes shared memory in the worker's place.

    with voice(pid) as channel:        # a duplicate of the worker's end of the control channel
        channel.send(b"anything")
    with memory(pid) as cells:         # the table that all processes share, as 64-bit cells

Needs a debugger's access to the worker (ptrace(2)), which is a grandchild of the test process.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SYS_pidfd_getfd = 438  # the same on every architecture since Linux 5.6
PAGE = 512  # cells


@contextlib.contextmanager
def voice(pid: int) -> Iterator[socket.socket]:
    """A duplicate of the worker's end of its control channel."""
    number = int(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2])
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        descriptor = libc.syscall(SYS_pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if descriptor < 0:
        pytest.skip(f"not allowed to take a descriptor of a worker: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=descriptor) as sock:
        yield sock


def shared_file(pid: int, name: str) -> int:
    """Open a file that the worker shares with the other processes; returns the descriptor."""
    found = [path for path in Path(f"/proc/{pid}/fd").iterdir() if name in str(path.readlink())]
    return os.open(found[0], os.O_RDWR)


@contextlib.contextmanager
def memory(pid: int) -> Iterator[memoryview]:
    """The shared table, as 64-bit cells."""
    descriptor = shared_file(pid, "relay-table")
    try:
        with mmap.mmap(descriptor, 0) as whole, memoryview(whole) as view, view.cast("Q") as cells:
            yield cells
    finally:
        os.close(descriptor)


def heartbeats(cells: memoryview, workers: int) -> list[int]:
    """The cells with the workers' heartbeats (monotonic nanoseconds), each at the start of a page."""
    now = time.monotonic_ns()
    found = [cell for cell in range(0, len(cells), PAGE) if abs(now - cells[cell]) < 3_000_000_000]
    assert len(found) == workers, found
    return found
