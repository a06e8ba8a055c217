"""A real relay whose settings have an old name: it starts, reloads and answers, and says so each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import Relay
from tests.support.programs import ROOT, START, environment
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

# The line of RENAMED that this version would have. Called as a wrapper of `python -m relay COMMAND`.
RENAMING = """\
import sys
from relay.settings.names import RENAMED, Renamed
RENAMED["limits.most"] = Renamed("limits.max_connections", "9.0.0")
RENAMED["control"] = Renamed("admin.bind", "9.0.0")
from relay.cli import main
sys.exit(main(sys.argv[4:]))
"""
WRAPPER = (sys.executable, "-c", RENAMING)
ENDS = "deprecated name, unknown from version 9.0.0 on"


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    line = [*WRAPPER, sys.executable, "-m", "relay", *map(str, arguments)]
    return subprocess.run(
        line, cwd=ROOT, env={**environment(), **environ}, capture_output=True, text=True, timeout=START
    )


def test_start_and_reload_log_it_and_it_has_an_effect(echo: Echo, tmp_path: Path) -> None:
    toml = settings(listener(echo.address), tables="[limits]\nmost = 7\n")
    line = toml.splitlines().index("most = 7") + 1
    warning = f"limits.most ({tmp_path}/relay.toml, line {line}): {ENDS}; write limits.max_connections"
    with Relay(tmp_path, toml, wrapper=WRAPPER) as relay:
        assert [line["level"] for line in relay.told(warning)] == ["warning"]
        assert relay.metrics().value("relay_connections_limit") == 7
        relay.config.write_text(toml.replace("most = 7", "most = 8"))
        assert relay.post("/reload")[0] == 200
        relay.told(warning, 2)
        assert relay.metrics().value("relay_connections_limit") == 8
        # The new name with the same value is no change, and ends the warnings.
        relay.config.write_text(toml.replace("most = 7", "max_connections = 8"))
        assert relay.post("/reload")[0] == 200
        assert relay.told("reloaded", 2)[-1]["changed"] == []
        relay.told(warning, 2)
        relay.config.write_text(toml.replace("most = 7", "most = 8\nmax_connections = 8"))
        relay.expected_errors.add("reload failed")
        status, said = relay.post("/reload")
        assert status != 200
        assert "limits.most and limits.max_connections: both given" in said
        assert relay.metrics().value("relay_connections_limit") == 8


def test_check_and_config_say_it_and_succeed(echo: Echo, tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(settings(listener(echo.address)))
    warning = f"warning: RELAY_LIMITS__MOST: {ENDS}; write RELAY_LIMITS__MAX_CONNECTIONS"
    done = run("check", "--config", file, RELAY_LIMITS__MOST="7")
    assert (done.returncode, warning in done.stdout.splitlines()) == (0, True), done
    done = run("config", "--config", file, RELAY_LIMITS__MOST="7")
    assert (done.returncode, done.stderr) == (0, f"{warning}\n")
    assert "max_connections = 7" in done.stdout.splitlines()
    done = run("check", "--config", file, RELAY_LIMITS__MOST="7", RELAY_LIMITS__MAX_CONNECTIONS="7")
    assert done.returncode == 2
    assert done.stderr.startswith("relay: RELAY_LIMITS__MOST and RELAY_LIMITS__MAX_CONNECTIONS: both given")


def test_status_finds_the_admin_port_under_its_old_name(echo: Echo, tmp_path: Path) -> None:
    with Relay(tmp_path, settings(listener(echo.address)), wrapper=WRAPPER) as relay:
        host, port = relay.address("admin")
        done = run("status", "--live", RELAY_CONTROL=f"{host}:{port}")
        assert done.returncode == 0, done


@pytest.mark.skipif(os.geteuid() != 0, reason="root")
def test_a_variable_under_its_new_name_is_no_difference_for_a_reload(echo: Echo, tmp_path: Path) -> None:
    toml = settings(listener(echo.address))
    with Relay(tmp_path, toml, wrapper=WRAPPER, environ={"RELAY_LIMITS__MOST": "7"}) as relay:
        check = ("check", "--config", relay.config, "--running", str(relay.process.pid))
        done = run(*check, RELAY_LIMITS__MAX_CONNECTIONS="7")
        assert "RELAY_LIMITS" not in done.stderr, done
        done = run(*check, RELAY_LIMITS__MAX_CONNECTIONS="8")
        assert "RELAY_LIMITS__MOST is 7 in the environment of the running relay and not set here" in done.stderr
        assert "RELAY_LIMITS__MAX_CONNECTIONS is not set in the environment of the running relay and 8" in done.stderr
