"""Starts programs: the relay's commands, and a launcher whose processes die with the test run."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RELAY = (sys.executable, "-m", "relay")
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))  # factor for timeouts: an emulated processor is slow
START = 20.0 * PATIENCE  # seconds for a relay to become ready or a command to end, on a busy machine

# Executes another program, which dies with the test run however that ends (prctl(2), PR_SET_PDEATHSIG = 1). The first
# argument is the program's descriptor limit (0: unchanged).
LAUNCH = """\
import ctypes, os, resource, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A free port on 127.0.0.1, for tests that cannot read from a log which port the kernel chose.

    If possible outside the kernel's ephemeral range: a port of that range may be given to another socket before use.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    others: list[int] = [*range(10_000, low), *range(high + 1, 65_536)]
    start = random.randrange(len(others) + 1)
    for port in [*others[start:], *others[:start], 0]:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as sock:
            return int(sock.getsockname()[1])
    raise AssertionError("no port is free")


def environment() -> dict[str, str]:
    """This process's environment without RELAY_ variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


def command(*arguments: str | Path, timeout: float = START, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `relay ARGUMENTS` to its end."""
    options = {"env": environment(), "stdin": subprocess.DEVNULL, **options}
    line = [*RELAY, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **options)


def launched(line: Sequence[str], limit: int = 0) -> list[str]:
    """The command `line` under the launcher: dies with this process, at most `limit` descriptors (0: unchanged)."""
    return [sys.executable, "-I", "-S", "-c", LAUNCH, str(limit), *line]
