"""Child processes of the demo: started so that a Ctrl-C at the terminal reaches the demo alone, ended within a bound.

This module does not know what runs in them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

KILL_GRACE = 3.0  # seconds that a process gets to end before it is asked in a harsher way
TAIL_LINES = 12

# Linux can end a process when its parent dies in any way (prctl(2), PR_SET_PDEATHSIG = 1; kept over execve). On other
# systems the relay outlives a demo that is killed with SIGKILL.
TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"


class DemoError(Exception):
    """The demo cannot go on; the text says what failed, in lines for a person."""


def tied(command: Sequence[str]) -> list[str]:
    """`command`, wrapped so that its process gets SIGTERM if the demo dies without ending it."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-c", TIED, str(int(signal.SIGTERM)), *command]


def environment() -> dict[str, str]:
    """This process's variables without RELAY_…: settings of the user's own relay must not reach the demo's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


def tail(path: Path) -> str:
    """The last lines of a log, indented."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        lines = [str(error)]
    return "\n".join(f"    {line}" for line in lines or ["(empty)"])


async def spawn(
    command: Sequence[str], *, stdin: int, stdout: int | IO[bytes], log: IO[bytes]
) -> asyncio.subprocess.Process:
    """Start `command` with standard error into `log`. Raises DemoError."""
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=stdout,
            stderr=log,
            env=environment(),
            # A session of its own: the terminal's Ctrl-C goes to every process of the foreground group, and would
            # end the relay at once, before the devices have closed their connections.
            start_new_session=True,
        )
    except OSError as error:
        raise DemoError(f"cannot start {command[0]}: {error}") from error


async def end(process: asyncio.subprocess.Process, *signals: tuple[signal.Signals, float]) -> bool:
    """Send each signal and give it its seconds, then SIGKILL. Returns whether the process ended without that."""
    for number, seconds in signals:
        if process.returncode is None:
            process.send_signal(number)
        if await ended(process, seconds):
            return True
    process.kill()
    await process.wait()
    return False


async def ended(process: asyncio.subprocess.Process, seconds: float) -> bool:
    """Wait for the process at most `seconds`; True if it has ended."""
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        return False
    return True
