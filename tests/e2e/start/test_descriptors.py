"""Descriptors 0, 1 and 2 closed by whoever starts relay: nothing else takes their place, and nobody is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from relay.ipc.channel import pair
from tests.support.clients import echoes
from tests.support.harness import Start
from tests.support.programs import RELAY, ROOT, START, environment, free_port
from tests.support.relay_toml import listener, settings
from tests.support.surroundings import closed
from tests.support.upstreams import Echo

SUBSETS = [subset for size in range(4) for subset in combinations((0, 1, 2), size)]
LOST = "relay: standard output was closed at the start: all lines of the log are lost\n"

subsets = pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "".join(map(str, subset)) or "none")


def target(pid: int, descriptor: int) -> str:
    return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())


@subsets
def test_nothing_takes_the_place_of_a_descriptor_that_was_closed(
    echo: Echo, start: Start, subset: tuple[int, ...]
) -> None:
    admin = ("127.0.0.1", free_port())
    toml = settings(listener(echo.address), workers=2).replace('"127.0.0.1:0"', f'"127.0.0.1:{admin[1]}"', 1)
    relay = start(toml, wrapper=closed(subset), admin=admin)
    assert relay.get("/readyz") == (200, "ok\n")
    expected = {0: os.devnull, 1: str(relay.log), 2: str(relay.errors)} | dict.fromkeys(subset, os.devnull)
    for pid in [relay.process.pid, *relay.worker_pids()]:
        assert {descriptor: target(pid, descriptor) for descriptor in (0, 1, 2)} == expected
    assert all(echoes(relay.address()) for _ in range(20))
    relay.wait_outcomes({"ok": 20})
    assert len(relay.log_lines()) > 0 if 1 not in subset else relay.log.read_text() == ""
    notes = [line["event"] for line in relay.log_lines() if line.get("level") == "warning"]
    assert [note.partition(" was")[0] for note in notes] == (
        ["standard error"] if 2 in subset and 1 not in subset else []
    )
    if 1 in subset and 2 not in subset:
        assert relay.errors.read_text() == LOST
        relay.errors.write_text("")
    relay.stop()


def run(subset: tuple[int, ...], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that is started without these descriptors."""
    return subprocess.run(
        [*closed(subset), *RELAY, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START,
    )


@subsets
def test_the_commands_do_their_work_without_them(tmp_path: Path, subset: tuple[int, ...]) -> None:
    good, wrong = tmp_path / "good.toml", tmp_path / "wrong.toml"
    good.write_text(settings(listener("127.0.0.1:9")))
    wrong.write_text("limits = 5")
    for arguments, status in (
        (["check", "--config", good], 0),
        (["config", "--config", good], 0),
        (["run", "--config", wrong], 2),
        (["run", "--nonsense"], 2),
    ):
        done = run(subset, *arguments)
        assert done.returncode == status, done
        assert bool(done.stdout) == (status == 0 and 1 not in subset), done
        assert bool(done.stderr) == (status == 2 and 2 not in subset), done


def test_one_look_at_a_running_relay_without_them(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    url = "http://{}:{}".format(*relay.address("admin"))
    assert run((0, 1, 2), "status", "--admin", url).returncode == 0
    assert "main" in run((0, 2), "status", "--admin", url).stdout


@subsets
def test_a_worker_starts_without_them(subset: tuple[int, ...]) -> None:
    """It ends well when its supervisor has nothing to say."""
    ours, theirs = pair()
    # A number that no closed descriptor makes free.
    high = socket.socket(fileno=os.dup2(theirs.fileno(), 200))
    theirs.close()
    with ours, high:
        worker = subprocess.Popen(
            [*closed(subset), sys.executable, "-m", "relay.worker", "200"],
            cwd=ROOT,
            pass_fds=[200],
            stderr=subprocess.PIPE,
        )
        ours.shutdown(socket.SHUT_RDWR)
        _, errors = worker.communicate(timeout=START)
    assert (worker.returncode, errors) == (0, b"")
