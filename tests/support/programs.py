"""Starting programs: the relay's commands, and a launcher that leaves none behind."""

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
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))  # times longer than usual: an emulated processor is slow
START = 20.0 * PATIENCE  # seconds until a relay is ready or a command has ended, on a machine that does other things

# Becomes another program, which dies with the test run however that ends (prctl(2), PR_SET_PDEATHSIG = 1), and which
# may have so many descriptors (0: as many as we).
LAUNCH = """\
import ctypes, os, resource, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, for one that no log can tell.

    None that the kernel chooses by itself, if there are others: until it is used, another socket might be given it.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    others: list[int] = [*range(10_000, low), *range(high + 1, 65_536)]
    start = random.randrange(len(others) + 1)
    for port in [*others[start:], *others[:start], 0]:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as sock:
            return int(sock.getsockname()[1])
    raise AssertionError("no port is free")


def environment() -> dict[str, str]:
    """This process's, without any relay's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


def command(*arguments: str | Path, timeout: float = START, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `relay ARGUMENTS` to its end."""
    options = {"env": environment(), "stdin": subprocess.DEVNULL, **options}
    line = [*RELAY, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **options)


def launched(line: Sequence[str], limit: int = 0) -> list[str]:
    """`line`, made to die with this process, with at most `limit` descriptors (0: as many as this process)."""
    return [sys.executable, "-I", "-S", "-c", LAUNCH, str(limit), *line]
