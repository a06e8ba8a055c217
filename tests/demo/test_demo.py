"""`relay demo` as a user runs it: real processes end to end, the exit status, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from relay.demo import run
from relay.demo.process import DemoError
from relay.demo.relay_process import Relay
from tests.support.observe import wait_until

DEADLINE = 30.0  # seconds
COMMAND = [sys.executable, "-m", "relay", "demo"]


class Demo:
    """A running `relay demo` whose output is read line by line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen = ""
        self.process = subprocess.Popen(
            COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(directory)
        )

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_until(self, pattern: str) -> re.Match[str]:
        """The first line with `pattern`; the demo writes one every two seconds, so the test's time limit holds."""
        for line in self.output:
            self.seen += line
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"no {pattern!r} in:\n{self.seen}")

    def end(self) -> int:
        """Read the rest; the exit status."""
        self.seen += self.output.read()
        return self.process.wait(DEADLINE)


def environment(directory: Path) -> dict[str, str]:
    """With temporary files below `directory`, and a setting that the demo's relay must not take."""
    return os.environ | {"TMPDIR": str(directory), "RELAY_WORKERS": "not a number"}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    try:
        yield demo
    finally:
        demo.process.kill()
        demo.process.wait()
        demo.output.close()


def pids_of(demo: Demo) -> set[int]:
    """The demo's hub, relay and workers."""
    hub = demo.read_until(r"stand-in hub: .*\(pid (\d+)\)")
    admin = demo.read_until(r"look: (http://[0-9.:]+)/status")
    with urllib.request.urlopen(f"{admin[1]}/status", timeout=DEADLINE) as answer:
        status = json.load(answer)
    return {int(hub[1]), status["pid"], *(worker["pid"] for worker in status["workers"])}


def none_is_left(pids: set[int]) -> None:
    """Wait until none of these processes is there any more."""
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), DEADLINE, f"end of {pids}")


def test_once_verifies_that_every_message_arrived(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--once"], capture_output=True, text=True, timeout=60, env=environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"^mqtt +6 +120 +120 .* ok 6\b", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^https +3 +60 +60 .* ok 3\b", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.splitlines()[-1] == "PASS: 180 of 180 messages arrived at the hub through the relay"
    assert "no AMQP here" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    pids = pids_of(demo)
    demo.read_until(r"9 of 9 devices connected, .*hub received [1-9]")
    demo.process.send_signal(number)
    assert demo.end() == 0, demo.seen
    last = demo.seen.splitlines()[-1]
    found = re.fullmatch(r"stopped: (\d+) messages sent, (\d+) acknowledged, (\d+) received by the hub", last)
    assert found is not None, demo.seen
    assert int(found[3]) >= int(found[2]) > 0
    assert "Traceback" not in demo.seen
    none_is_left(pids)
    assert list(demo.directory.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_demo_that_is_killed_takes_its_processes_with_it(demo: Demo) -> None:
    pids = pids_of(demo)
    demo.process.kill()
    none_is_left(pids)


def test_a_hub_that_dies_ends_the_demo_with_the_reason(demo: Demo) -> None:
    hub = demo.read_until(r"stand-in hub: .*\(pid (\d+)\)")
    demo.read_until(r"devices connected")
    os.kill(int(hub[1]), signal.SIGKILL)
    assert demo.end() == 1
    assert "relay demo: the stand-in hub has ended" in demo.seen
    assert "Traceback" not in demo.seen
    assert list(demo.directory.iterdir()) == []


async def test_a_relay_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    relay = Relay(tmp_path, {"No Such Name": 1})
    try:
        with pytest.raises(DemoError, match=r"(?s)ended at its start, exit status 2.*listeners"):
            await relay.start()
    finally:
        assert await relay.stop()


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "amqtt", None)
    assert run.main(once=True) == 1
    assert (
        capsys.readouterr().out
        == "relay demo needs packages that relay itself does not; in relay's source tree, `make demo` installs them\n"
    )
