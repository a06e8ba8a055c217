"""Priorities on log lines where they go to systemd's journal, and nowhere else: what sd-daemon(3) calls prefixes.

JOURNAL_STREAM has the device and the inode of the descriptor that leads to the journal (systemd.exec(5)); here that is
a file, which is compared the same way. tests/packaging/ has the journal itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest

from tests.support.clients import echoes
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.programs import RELAY, ROOT, environment, free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

PREFIX = re.compile(r"<([0-7])>(.*)")


def stream(file: IO[bytes]) -> str:
    """JOURNAL_STREAM for that file."""
    status = os.fstat(file.fileno())
    return f"{status.st_dev}:{status.st_ino}"


def marked(text: str) -> list[tuple[int, str]]:
    """Priority and line, of lines that all have one."""
    found = [PREFIX.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(int(match[1]), match[2]) for match in found if match]


def logged(start: Start, echo: Echo, out: IO[bytes], journal: str, tables: str = "") -> str:
    """What a relay says with its log in the file `out`: a connection, a reload that fails, a killed worker, the end."""
    log = Path(str(out.name))
    admin = "127.0.0.1", free_port()
    toml = settings(listener(echo.address), tables=tables).replace(
        '[admin]\nbind = "127.0.0.1:0"', f'[admin]\nbind = "{admin[0]}:{admin[1]}"'
    )
    relay = start(toml, stdout=out, admin=admin, environ={"JOURNAL_STREAM": journal})
    assert echoes(relay.address())
    relay.wait_outcomes({"ok": 1})
    # A worker's death takes lines with it that are not written yet.
    wait_until(lambda: '"connection"' in log.read_text() or " main: " in log.read_text(), what="the connection's line")
    text = relay.config.read_text()
    relay.config.write_text("workers = [")
    relay.signal(signal.SIGHUP)
    relay.wait_status(lambda status: status["reloads"]["failed"] == 1)
    relay.config.write_text(text)
    (pid,) = relay.worker_pids()
    os.kill(pid, signal.SIGKILL)
    relay.wait_status(lambda status: status["workers"][0]["ready"] and status["workers"][0]["pid"] != pid)
    relay.signal(signal.SIGINT)
    assert relay.wait() == 0
    return log.read_text()


def test_each_line_has_its_priority_where_it_goes_to_the_journal(echo: Echo, start: Start, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("ab") as out:
        text = logged(start, echo, out, stream(out), '[log]\nlevel = "debug"\n')
    lines = [(priority, json.loads(line)) for priority, line in marked(text)]
    priorities = {"debug": 7, "info": 6, "warning": 4, "error": 3}
    for priority, line in lines:
        assert priority == priorities[line.get("level", "info")], line
    events = {line["event"]: priority for priority, line in lines}
    assert events["connection"] == 6
    assert events["worker started"] == 7
    assert events["worker died"] == events["reload failed"] == 3


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("journal", ["", "another", "rubbish"])
def test_no_line_has_one_anywhere_else(echo: Echo, start: Start, tmp_path: Path, journal: str, log_format: str) -> None:
    with (tmp_path / "log").open("ab") as out, (tmp_path / "another").open("wb") as another:
        name = {"another": stream(another), "rubbish": "8:x"}.get(journal, "")
        lines = logged(start, echo, out, name, f'[log]\nformat = "{log_format}"\n').splitlines()
    assert len(lines) > 8
    assert not [line for line in lines if line.startswith("<")]


def test_console_lines_have_theirs_too(echo: Echo, start: Start, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("ab") as out:
        lines = marked(logged(start, echo, out, stream(out), '[log]\nformat = "console"\n'))
    assert {priority for priority, line in lines if "worker died" in line} == {3}
    assert {priority for priority, line in lines if " main: " in line} == {6}


def test_mistakes_at_the_start_are_errors_in_the_journal(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text('upstream = ["hub"]\nnonsense = 1\nworkers = -1\n')
    log = tmp_path / "journal"
    for command, status in (("run", 2), ("check", 2)):
        with log.open("wb") as out:
            done = subprocess.run(
                [*RELAY, command, "--config", str(config)],
                cwd=ROOT, env={**environment(), "JOURNAL_STREAM": stream(out)}, stdout=out, stderr=out,
            )  # fmt: skip
        assert done.returncode == status
        lines = marked(log.read_text())
        assert len(lines) == 2
        assert all(priority == 3 and line.startswith("relay: ") for priority, line in lines), lines


def test_only_the_output_that_is_the_journal_is_marked(tmp_path: Path) -> None:
    """An ExecReload= with its standard error elsewhere, a shell that was started by a service."""
    config = tmp_path / "relay.toml"
    config.write_text("nonsense = 1\n")
    log = tmp_path / "journal"
    with log.open("wb") as out:
        done = subprocess.run(
            [*RELAY, "check", "--config", str(config)],
            cwd=ROOT, env={**environment(), "JOURNAL_STREAM": stream(out)}, stdout=out, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert done.stderr.startswith(b"relay: ")
        done = subprocess.run(
            [*RELAY, "config"],
            cwd=ROOT, env={**environment(), "JOURNAL_STREAM": stream(out)}, stdout=out, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert {priority for priority, _ in marked(log.read_text())} == {6}


def test_what_a_worker_writes_to_standard_error_is_marked(tmp_path: Path) -> None:
    """A worker that has no proper orders ends by an exception: its last words."""
    log = tmp_path / "journal"
    with log.open("wb") as out:
        worker = subprocess.run(
            [RELAY[0], "-m", "relay.worker", "99"],
            cwd=ROOT, env={**environment(), "JOURNAL_STREAM": stream(out)}, stderr=out,
        )  # fmt: skip
        assert worker.returncode == 1
    lines = marked(log.read_text())
    assert {priority for priority, _ in lines} == {3}
    assert lines[0][1] == "Traceback (most recent call last):"
