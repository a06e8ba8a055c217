"""Settings that are wrong stop the start: exit status 2 and one line for each mistake, naming the setting.

A file that cannot be had is nothing wrong in itself: exit status 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import START, command, environment
from tests.support.relay_toml import listener, settings

GOOD = settings(listener("127.0.0.1:9"))


@pytest.mark.parametrize(
    ("toml", "named", "told"),
    [
        (GOOD + "\n[limit]\nmax_connections = 1\n", "limit", "limits"),  # the nearest name that exists
        (settings(listener("127.0.0.1:9"), tables='[timeouts]\nidle = "5m"'), "timeouts.idle", "seconds"),
        (settings(listener("127.0.0.1:9"), tables="[drain]\nwindow = -1"), "drain.window", "seconds"),
        (settings(listener("127.0.0.1")), "listeners[0].upstream[0]", "host:port"),
        (settings(), "listeners", "upstream"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(tmp_path: Path, toml: str, named: str, told: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(toml)
    result = command("run", "--config", path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("relay: ")
    assert named in line
    assert told in line


def test_a_mistake_in_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(GOOD)
    result = command("run", "--config", path, env={**environment(), "RELAY_LIMITS__MAX_CONNECTIONS": "many"})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("relay: RELAY_LIMITS__MAX_CONNECTIONS (limits.max_connections): ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = command("run", "--config", tmp_path / "none.toml")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "none.toml" in line


def test_a_file_that_is_not_there_and_a_variable_that_is_wrong(tmp_path: Path) -> None:
    result = command("run", "--config", tmp_path / "none.toml", env={**environment(), "RELAY_WORKERS": "many"})
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 2), "wrong wherever the file is"


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text("workers: 2\n")
    result = command("run", "--config", path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "relay.toml" in line
    assert "line 1" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    # Everything that the command imports comes first: this checkout may be in a folder that nobody may enter.
    code = "import os, subprocess, sys, relay.cli, relay.supervisor.start, relay.settings.model; os.setgroups([]); "
    code += "os.setuid(65534); "
    path = tmp_path / "relay.toml"
    path.write_text(GOOD)
    path.chmod(0o600)
    result = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(relay.cli.main(sys.argv[1:]))", "run", "--config", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert result.returncode == 1, result
    (line,) = result.stderr.splitlines()
    assert "relay.toml" in line
    assert "ermission denied" in line
