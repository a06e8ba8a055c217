"""A virtual machine of QEMU with a kernel of its own, and how the checks talk to it: a connection backend of
pytest-testinfra, guest://PATH, by a serial port. The image has no SSH, and the machine no network.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from testinfra.backend.base import BaseBackend, CommandResult

BOOT = 600.0  # seconds; emulated, and beside other work
COMMAND = 600.0
PORT = "/dev/vport0p1"  # the first port of the first virtio-serial device
AGENT = f"""\
import base64, json, os, subprocess, time

environment = {{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}}
port = os.open("{PORT}", os.O_RDWR)
pending = b""
while True:
    data = os.read(port, 65536)
    if not data:  # nobody is there
        time.sleep(0.2)
        continue
    *lines, pending = (pending + data).split(b"\\n")
    for line in lines:
        try:
            asked = json.loads(line)
        except ValueError:
            continue
        done = subprocess.run(["/bin/sh", "-c", asked["command"]], capture_output=True, env=environment,
                              stdin=subprocess.DEVNULL)
        answer = {{"id": asked["id"], "rc": done.returncode,
                  "out": base64.b64encode(done.stdout).decode(), "err": base64.b64encode(done.stderr).decode()}}
        text = json.dumps(answer).encode() + b"\\n"
        while text:
            text = text[os.write(port, text):]
"""
UNIT = """\
[Unit]
Description=commands of a test

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/relay-test-agent.py
Restart=always

[Install]
WantedBy=sysinit.target
"""


class Line:
    """The near end of the serial port."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._pending = b""
        # Another line's answers may still be on their way.
        self._last = secrets.randbits(60)

    def close(self) -> None:
        self._socket.close()

    def run(self, command: str, timeout: float = COMMAND) -> tuple[int, bytes, bytes]:
        """Exit status and outputs. Raises TimeoutError."""
        self._last += 1
        deadline = time.monotonic() + timeout
        self._socket.settimeout(timeout)
        self._socket.sendall(json.dumps({"id": self._last, "command": command}).encode() + b"\n")
        while True:
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if answer["id"] == self._last:
                    return answer["rc"], base64.b64decode(answer["out"]), base64.b64decode(answer["err"])
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            self._pending += self._socket.recv(65536)


class GuestBackend(BaseBackend):  # type: ignore[misc]  # untyped
    """Commands run as root in the guest."""

    NAME = "guest"

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self._line = Line(unquote(name))

    def run(self, command: str, *args: str, **_kwargs: Any) -> CommandResult:
        """Run a shell command; never raises for its exit status."""
        line = self.get_command(command, *args)
        status, out, err = self._line.run(line)
        return self.result(status, self.encode(line), out, err)


class Guest:
    """A machine, from boot to the end, whose disk is made of a root folder, which it leaves as it is."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "port"
        self.console = folder / "console.log"
        agent = root / "usr/local/lib/relay-test-agent.py"
        agent.write_text(AGENT)
        unit = root / "etc/systemd/system/relay-test-agent.service"
        unit.write_text(UNIT)
        wanted = root / "etc/systemd/system/sysinit.target.wants"
        wanted.mkdir(exist_ok=True)
        (wanted / unit.name).symlink_to(f"../{unit.name}")
        slow = root / "etc/systemd/system/relay.service.d/emulated.conf"
        slow.parent.mkdir(exist_ok=True)
        slow.write_text("[Service]\nTimeoutStartSec=600\nWatchdogSec=600\n")
        self._disk = folder / "disk"
        make = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(self._disk), "3G"]
        subprocess.run(make, check=True, capture_output=True)
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, folder / "kernel")
        self._qemu: subprocess.Popen[bytes] | None = None

    @property
    def spec(self) -> str:
        """The machine in testinfra's words."""
        return f"guest://{quote(str(self._path), safe='')}"

    def __enter__(self) -> Self:
        self._qemu = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults",
                "-no-user-config", "-no-reboot", "-display", "none", "-serial", f"file:{self.console}",
                "-drive", f"file={self._disk},format=raw,if=virtio,cache=unsafe", "-kernel", f"{self._folder}/kernel",
                "-append", "root=/dev/vda rw console=ttyS0 panic=-1",
                "-chardev", f"socket,id=port,path={self._path},server=on,wait=off",
                "-device", "virtio-serial", "-device", "virtserialport,chardev=port,name=relay-test",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.end()
            raise
        return self

    def _wait(self) -> None:
        """Until the boot is over, or waits for settings."""
        deadline = time.monotonic() + BOOT
        while True:
            assert self._qemu is not None
            assert self._qemu.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not up after {BOOT:g} s: {self.said()}"
            try:
                line = Line(str(self._path))
            except OSError:
                time.sleep(0.2)
                continue
            try:
                status, out, _ = line.run("systemctl is-active multi-user.target network-online.target; :", 10)
                if status == 0 and out.split():
                    return
            except OSError:
                pass  # it has not come so far
            finally:
                line.close()

    def said(self) -> str:
        """The end of its console."""
        return self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Power it off at once."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
