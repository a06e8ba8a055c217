"""A connection backend of pytest-testinfra for a local virtual machine: nsenter://PID, the machine's first process."""

from __future__ import annotations

from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult

from tests.packaging.machine import PATH


class NsenterBackend(BaseBackend):  # type: ignore[misc]  # untyped
    """Commands run as root in all namespaces of a process."""

    NAME = "nsenter"

    def __init__(self, pid: str, *args: Any, **kwargs: Any) -> None:
        self.pid = int(pid)
        super().__init__(pid, *args, **kwargs)

    def run(self, command: str, *args: str, **_kwargs: Any) -> CommandResult:
        """Run a shell command; never raises for its exit status."""
        line = self.get_command(command, *args)
        enter = f"nsenter -t {self.pid} -a -w env -i PATH={PATH} HOME=/root LC_ALL=C.UTF-8 /bin/sh -c %s"
        return self.run_local(enter, line)


def register() -> None:
    """Let testinfra.get_host() know nsenter:// and guest://."""
    testinfra.backend.BACKENDS["nsenter"] = f"{__name__}.{NsenterBackend.__name__}"
    testinfra.backend.BACKENDS["guest"] = "tests.image.guest.GuestBackend"
