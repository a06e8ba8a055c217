"""A virtual machine that systemd runs, systemd-nspawn(1): a container with a systemd of its own, and no network but
loopback.

    with Machine(root) as machine:
        machine.write("/etc/relay/relay.toml", text)
        machine.systemctl("start", "relay")
        with machine.connect(("127.0.0.1", 443)) as client: ...

Whatever a test writes is gone with it: the root is read-only below a layer in memory. relay is a copy of this
checkout's, its packages are this environment's, read-only; a machine that is made with `shared` folders has those
instead, and no relay. Traffic stays inside: `connect` and `inside` make sockets in
the machine's network namespace, which this process then uses like any other.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from tests.support.clients import TIMEOUT
from tests.support.namespace import in_network_of
from tests.support.programs import ROOT

T = TypeVar("T")

BOOT = 60.0  # seconds
COMMAND = 120.0  # seconds
MODULES = "/usr/local/lib/python{}.{}/dist-packages".format(*sys.version_info[:2])
# Of nspawn's defaults the units miss this one: LimitNOFILE= and OOMScoreAdjust= go beyond what a container may do.
CAPABILITY = "CAP_SYS_RESOURCE"
RELAY = "#!/usr/bin/python3\nimport sys\n\nfrom relay.cli import main\n\nsys.exit(main())\n"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _cgroups(name: str) -> list[Path]:
    """Control groups of its own for a machine, where no systemd runs that would make them: two would share one."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # A hierarchy may be mounted at several places, as in a root that somebody has bound it into: one of them is enough.
    places = {
        fields[2]: fields[4]
        for fields in reversed(mounts)
        if fields[fields.index("-") + 1] == "cgroup2" or "name=systemd" in fields[-1].split(",")
    }
    return [Path(place) / name for place in places.values()]


class Machine:
    """One machine, from boot to the end. `root` is read and not changed.

    `shared`: folders of this machine by the place where they are in that one, read-only, in place of relay.
    `kept`: likewise, but what the machine writes there stays. Without `settled` it is there as soon as its systemd
    answers, in the midst of the boot.
    """

    def __init__(
        self,
        root: Path,
        shared: Mapping[str, Path] | None = None,
        kept: Mapping[str, Path] | None = None,
        *,
        settled: bool = True,
    ) -> None:
        self._root = root
        packages = Path(sysconfig.get_paths()["purelib"])
        self._shared = {"/opt/checkout": ROOT / "relay", "/opt/packages": packages} if shared is None else shared
        self._bare = shared is not None
        self._kept = kept or {}
        self._up = ("running", "degraded") if settled else ("running", "degraded", "starting", "initializing")
        self._name = f"relay-test-{os.getpid()}-{time.monotonic_ns() % 10**6}"
        self._hosted = Path("/run/systemd/system").is_dir()
        self._cgroups = [] if self._hosted else _cgroups(self._name)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self.leader = 0  # its first process, as seen from here

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.end()

    def _boot(self) -> None:
        for group in self._cgroups:
            group.mkdir(exist_ok=True)  # one hierarchy may be mounted at several places
        line = [
            "systemd-nspawn", "--quiet", f"--directory={self._root}", "--read-only", "--volatile=overlay",
            f"--machine={self._name}", "--register=no", *([] if self._hosted else ["--keep-unit"]),
            "--console=pipe", "--private-network", "--link-journal=no", f"--capability={CAPABILITY}",
            *(f"--bind={folder}:{place}" for place, folder in self._kept.items()),
            *(f"--bind-ro={folder}:{place}" for place, folder in self._shared.items()), "--boot",
        ]  # fmt: skip
        enter = "".join(f"echo $$ >{group}/cgroup.procs; " for group in self._cgroups)
        self._nspawn = subprocess.Popen(
            ["sh", "-c", f'{enter}exec "$@"', "sh", *line],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"]},
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + BOOT
        while not (state := self._state()):
            assert self._nspawn.poll() is None, f"no machine: {self._said()}"
            assert time.monotonic() < deadline, f"not up after {BOOT:g} s: {self._said()}"
            time.sleep(0.05)
        assert state != "degraded", f"{state}: {self.systemctl('--failed', check=False)}"
        if self._bare:
            return
        self.write(f"{MODULES}/packages.pth", "/opt/packages\n")
        # Compiled as when installed: three processes that each do so at every start take seconds.
        self.run("sh", "-c", f"cp -r /opt/checkout {MODULES}/relay && python3 -m compileall -q {MODULES}/relay")
        self.write("/usr/bin/relay", RELAY, mode=0o755)

    def _state(self) -> str:
        """What its systemd says of it; nothing while it starts."""
        self.leader = self.leader or self._find_leader()
        if not self.leader:
            return ""
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state if state in self._up else ""

    def _find_leader(self) -> int:
        assert self._nspawn is not None
        pid = self._nspawn.pid
        try:
            for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
                status = Path(f"/proc/{child}/status").read_text()
                inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
                if inside == "1" and Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        except OSError:
            pass
        return 0

    def _said(self) -> str:
        self._console.seek(0)
        return self._console.read()[-3000:].decode(errors="replace")

    def wait_off(self, timeout: float) -> None:
        """Until it has ended by itself. Fails after `timeout` seconds."""
        assert self._nspawn is not None
        self._nspawn.wait(timeout)
        self.leader = 0

    def end(self) -> None:
        """End it at once: with its first process go all others."""
        if self._nspawn is not None:
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            else:
                self._nspawn.kill()
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
            self._nspawn = None
        self._console.close()
        for group in self._cgroups:
            for folder in sorted(group.glob("**/"), key=lambda path: -len(path.parts)):
                try:
                    folder.rmdir()
                except OSError:
                    pass  # the kernel is not done with it; an empty group costs nothing

    # --- inside -----------------------------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, data: bytes = b"") -> str:
        """Run a command in it, as root; what it says on both outputs. Fails if it fails, unless not to `check`."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "-w", "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *command],
            input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND,
        )  # fmt: skip
        text = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}: {text}{self._why(command)}"
        return text

    def _why(self, command: tuple[str, ...]) -> str:
        return self.journal()[-6000:] if command[0] == "systemctl" else ""

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """systemctl(1)."""
        return self.run("systemctl", "--no-pager", *arguments, check=check)

    def show(self, name: str, unit: str = "relay.service") -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, *arguments: str) -> str:
        """What relay has written, a line each; other arguments of journalctl(1): what those choose."""
        return self.run("journalctl", "--no-pager", "--output=cat", *(arguments or ("--unit=relay.service",)))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file in it, with the folders that it needs."""
        script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, f"{mode:o}", data=text.encode())

    def signal(self, pid: int, number: signal.Signals) -> None:
        """To a process, whose number is the one inside."""
        self.run("kill", f"-{int(number)}", str(pid))

    # --- its network ------------------------------------------------------------------------------------------------

    def inside(self, make: Callable[[], T]) -> T:
        """Call `make` in its network: sockets that it makes stay there, whoever uses them then."""
        return in_network_of(self.leader, make)

    def connect(self, address: tuple[str, int], timeout: float = TIMEOUT) -> socket.socket:
        """A client inside. Raises OSError."""
        return self.inside(lambda: socket.create_connection(address, timeout))
