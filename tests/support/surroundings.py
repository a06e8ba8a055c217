"""Odd process attributes that a careless parent passes on: closed descriptors, ignored and blocked signals.

Each function returns a command-line prefix, to be followed by the program's own command line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

CLOSED = "import os, sys; [os.close(int(n)) for n in sys.argv[1].split(',') if n]; os.execv(sys.argv[2], sys.argv[2:])"
SIGNALS = """\
import os, signal, sys
ignored, blocked, pending = ([int(n) for n in text.split(",") if n] for text in sys.argv[1:4])
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
for number in pending:
    os.kill(os.getpid(), number)
os.execv(sys.argv[4], sys.argv[4:])
"""


def closed(descriptors: Iterable[int]) -> list[str]:
    """A prefix that closes these descriptors."""
    return [sys.executable, "-I", "-S", "-c", CLOSED, _joined(descriptors)]


def signals(*, ignored: Iterable[int] = (), blocked: Iterable[int] = (), pending: Iterable[int] = ()) -> list[str]:
    """A prefix that ignores, blocks and raises signals; raised ones that are blocked stay pending over execve(2)."""
    return [sys.executable, "-I", "-S", "-c", SIGNALS, _joined(ignored), _joined(blocked), _joined(pending)]


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(str(int(number)) for number in numbers)


def signal_set(pid: int, name: str) -> set[int]:
    """The signals in a process's SigBlk, SigIgn or SigCgt, proc_pid_status(5); empty if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith(f"{name}:"))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}
