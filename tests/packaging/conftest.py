"""Fixtures of the units' tests: a machine that systemd runs, with relay's units in it and an echo behind them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.installed import Installed
from tests.packaging.machine import Machine
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

TOOLS = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "mmdebstrap": "mmdebstrap"}


@pytest.fixture(scope="session")
def root() -> Path:
    """What a machine is made of; made now if it never was, which takes a minute."""
    if os.geteuid() != 0:
        pytest.skip("a virtual systemd machine needs root")
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} (make deps installs them)")
    made = subprocess.run([sys.executable, str(ROOT / "scripts/systemd_root.py")], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no root for a virtual systemd machine: {made.stderr.strip().splitlines()[-1]}")
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def machine(root: Path) -> Iterator[Machine]:
    with Machine(root) as booted:
        yield booted


@pytest.fixture(scope="module")
def echo(machine: Machine) -> Iterator[Echo]:
    """The upstream, inside the machine."""
    with machine.inside(Echo) as server:
        yield server


@pytest.fixture
def relay(machine: Machine, echo: Echo) -> Iterator[Installed]:
    """relay as a package would install it, not started."""
    with Installed(machine, echo.address) as installed:
        yield installed
