"""As PID 1, relay reaps the orphans that the kernel makes its children, so that they do not stay as zombies.

The first process of a PID namespace (a container without an init) inherits every process whose parent has ended
(pid_namespaces(7)): what `docker exec` or a probe's script leaves behind. A zombie that nobody waits for holds a PID
until the container ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection

LOOK = 1.0  # seconds until the next look where one of relay's own processes is in the way


class Reaper:
    """Reaps what is not relay's own.

    `own` gives the PIDs of processes whose exit status relay itself waits for, or None while a thread waits for one
    whose PID is not known here (the reader of a settings file).
    """

    def __init__(self, own: Callable[[], Collection[int] | None]) -> None:
        self._own = own
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Reap from now on, if this process is PID 1; otherwise orphans are another's."""
        if os.getpid() == 1:
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
            self.reap()

    def stop(self) -> None:
        """Set no further timer."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def reap(self) -> None:
        """Reap every zombie up to the first of relay's own, which its own watcher takes; then look again later."""
        self.stop()
        while (zombie := _zombie()) is not None:
            own = self._own()
            if own is None or zombie in own:
                self._later = asyncio.get_running_loop().call_later(LOOK, self.reap)
                return
            try:
                os.waitpid(zombie, os.WNOHANG)
            except ChildProcessError:
                pass  # a thread of ours has just taken it


def _zombie() -> int | None:
    """The PID of a child that has ended, without reaping it; None if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None
