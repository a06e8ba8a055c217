"""Reaps orphaned processes where relay is PID 1, so that they do not stay as zombies.

The first process of a PID namespace (a container without an init) becomes the parent of every process whose own parent
has ended (pid_namespaces(7)): those that `docker exec` or a probe's script leaves behind. A zombie that is not waited
for holds its PID until the container ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection

RETRY = 1.0  # seconds until the next attempt when the first zombie is one of relay's own processes


class Reaper:
    """Reaps children that are not relay's own.

    `own` returns the PIDs whose exit status relay itself waits for, or None while a thread waits for a process whose
    PID is unknown here (the reader of the settings file).
    """

    def __init__(self, own: Callable[[], Collection[int] | None]) -> None:
        self._own = own
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Reap from now on, if this process is PID 1; otherwise another process adopts orphans."""
        if os.getpid() == 1:
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
            self.reap()

    def stop(self) -> None:
        """Cancel the next attempt."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def reap(self) -> None:
        """Reap zombies up to the first of relay's own, which is reaped where it is awaited; then retry later."""
        self.stop()
        while (zombie := _zombie()) is not None:
            own = self._own()
            if own is None or zombie in own:
                self._later = asyncio.get_running_loop().call_later(RETRY, self.reap)
                return
            try:
                os.waitpid(zombie, os.WNOHANG)
            except ChildProcessError:
                pass  # a thread of this process has just reaped it


def _zombie() -> int | None:
    """The PID of a child that has ended, without reaping it; None if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None
