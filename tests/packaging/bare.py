"""What the tests of bundle and Debian package share: trees to build from, and a machine without relay."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.installed import PATIENCE
from tests.packaging.machine import Machine
from tests.support.clients import receive
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

NEWER = "99.0.0"  # version of `newer_tree`
# A setting has another name there; the old one is deprecated.
OLD_NAME, NEW_NAME = "timeouts.max_age_jitter", "timeouts.max_age_spread"
DEPRECATED = f"deprecated name, unknown from version 100.0.0 on; write {NEW_NAME}"
SETTINGS = "/etc/relay/relay.toml"


def need_sources(what: str, folder: Path) -> None:
    """Skip the test unless there is a checkout to build from, and an index for the wheels of the dependencies."""
    if not (ROOT / ".git").exists():
        pytest.skip(f"a {what} is built from a git checkout")
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "probe"), "idna"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"no package index can be reached, and the {what} holds wheels of one")


def copy(tree: Path) -> Path:
    """This tree in another folder, without git's own."""
    line = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def newer_tree(tree: Path) -> str:
    """Make `tree` a checkout of version NEWER, in which one setting was renamed; returns the version of this tree."""
    package = copy(tree) / "relay/__init__.py"
    version = package.read_text().split('__version__ = "')[1].split('"')[0]
    package.write_text(package.read_text().replace(f'"{version}"', f'"{NEWER}"'))
    old, new = (name.rpartition(".")[2] for name in (OLD_NAME, NEW_NAME))
    for module in (tree / "relay").rglob("*.py"):
        module.write_text(module.read_text().replace(old, new))
    table = tree / "relay/settings/names.py"
    empty = "RENAMED: dict[str, Renamed] = {}\n"
    assert empty in table.read_text()
    entry = empty.replace("{}", f'{{"{OLD_NAME}": Renamed("{NEW_NAME}", "100.0.0")}}')
    table.write_text(table.read_text().replace(empty, entry))
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "-m", "newer"],
    ):
        subprocess.run(["git", *command], cwd=tree, check=True)
    return version


class Bare:
    """A machine on which relay is not installed yet. `prefix` is the folder that has a folder for each version."""

    prefix: str

    def __init__(self, machine: Machine, echo: Echo, version: str) -> None:
        self.machine = machine
        self.version = version
        self._echo = echo

    def configure(self, more: str = "") -> None:
        """Write settings for one listener, on port 443; `more` comes before it."""
        host, port = self._echo.address
        self.machine.write(
            SETTINGS,
            f"workers = 2\n[health_check]\ninterval = 0.0\n[drain]\nannounce = 0.0\nwindow = 0.5\n{more}"
            f'[[listeners]]\nname = "https"\nbind = ["0.0.0.0:443"]\nupstream = ["{host}:{port}"]\n',
        )

    def line_of(self, text: str) -> int:
        """The line of the settings file that begins with this."""
        lines = self.machine.run("cat", SETTINGS).splitlines()
        return next(number for number, line in enumerate(lines, 1) if line.startswith(text))

    def echoes(self) -> bool:
        """Whether bytes pass, there and back. Raises OSError if there is no connection."""
        with self.machine.connect(("127.0.0.1", 443), PATIENCE) as client:
            client.sendall(b"hello")
            return receive(client, 5) == b"hello"

    def running(self) -> str:
        """Version of the relay that serves, from the path of its process; "" if none does."""
        pid = self.machine.show("MainPID")
        line = self.machine.run("cat", f"/proc/{pid}/cmdline", check=False) if pid != "0" else ""
        return line.removeprefix(f"{self.prefix}/").partition("/")[0] if line.startswith(f"{self.prefix}/") else ""
