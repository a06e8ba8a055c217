"""The unit files by themselves, as systemd's own tools see them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from relay.core.drain import GRACE, LATE
from relay.engines.options import BACKLOG
from relay.settings.tables import DrainSettings, TcpSettings
from relay.supervisor.start import LOG_FLUSH
from relay.supervisor.supervisor import END_GRACE
from tests.support.programs import ROOT

UNITS = ROOT / "deploy/systemd"
EXPOSURE = 20  # tenths


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze (package systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=50)


def settings(name: str, section: str) -> dict[str, str]:
    """The last value of each setting."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return dict(parser[section])


def test_systemd_finds_no_mistake(tmp_path: Path) -> None:
    # The one thing that it would miss is the program itself.
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = [path for path in UNITS.iterdir() if path.suffix in (".service", ".socket", ".timer")]
    for path in units:
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/relay", str(program)))
    done = analyze("verify", *(tmp_path / path.name for path in units))
    said = [line for line in (done.stdout + done.stderr).splitlines() if "relay" in line]
    assert said == []


@pytest.mark.parametrize("name", ["relay.service", "relay-settings.service"])
def test_the_service_can_do_little(name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", UNITS / name)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_time_to_stop_is_that_of_a_drain() -> None:
    drain = DrainSettings()
    needed = drain.announce + drain.window + GRACE + LATE + 2 * END_GRACE + LOG_FLUSH
    assert needed <= float(settings("relay.service", "Service")["TimeoutStopSec"]) < 2 * needed


def test_the_sockets_are_as_relay_makes_its_own() -> None:
    found, tcp = settings("relay.socket", "Socket"), TcpSettings()
    assert int(found["Backlog"]) == BACKLOG
    assert found["NoDelay"] == "yes"
    assert found["BindIPv6Only"] == "ipv6-only"
    keepalive = (found["KeepAliveTimeSec"], found["KeepAliveIntervalSec"], found["KeepAliveProbes"])
    assert tuple(map(int, keepalive)) == (tcp.keepalive_idle, tcp.keepalive_interval, tcp.keepalive_count)
    assert "KeepAlive" not in found


@pytest.mark.parametrize("path", sorted(UNITS.iterdir()), ids=lambda path: str(path.name))
def test_lines_fit(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_each_line_of_the_machines_settings_has_its_reason() -> None:
    """A comment right above it, or above the lines that it stands with; no kernel setting is named twice."""
    lines = (UNITS / "relay-sysctl.conf").read_text().splitlines()
    names = [line.partition(" = ")[0].removeprefix("-") for line in lines if line and not line.startswith("#")]
    assert len(names) == len(set(names)) >= 10
    for paragraph in "\n".join(lines).split("\n\n"):
        assert paragraph.startswith("# "), paragraph


@pytest.mark.skipif(shutil.which("sysctl") is None, reason="no sysctl (package procps)")
def test_the_kernel_knows_every_line_of_the_machines_settings() -> None:
    """But for those that may be missing, which begin with "-"."""
    for line in (UNITS / "relay-sysctl.conf").read_text().splitlines():
        if line.startswith("net."):
            name = line.partition(" = ")[0]
            assert Path("/proc/sys", *name.split(".")).exists(), name
