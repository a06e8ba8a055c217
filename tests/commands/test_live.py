"""`relay status --live`: one line and an exit status, for a container's health check."""

from __future__ import annotations

import subprocess
import sys

import pytest

from relay.commands.live import run
from tests.supervisor.admin.admin_ports import Reply, admin_port
from tests.support.programs import ROOT, command

Said = pytest.CaptureFixture[str]


def test_a_relay_whose_workers_answer_is_alive(capsys: Said) -> None:
    with admin_port(Reply(body="ok\n")) as port:
        assert run(port.url) == 0
        assert port.asked == ["GET /livez"]
    assert capsys.readouterr() == ("alive, relay 9.8.7\n", "")


def test_one_with_a_worker_that_hangs_is_not_and_says_which(capsys: Said) -> None:
    with admin_port(Reply(503, "worker 1: hung\n")) as port:
        assert run(port.url) == 1
    assert capsys.readouterr() == ("not alive, relay 9.8.7: worker 1: hung\n", "")


@pytest.mark.parametrize("reply", [Reply(404), Reply(500), Reply(200, server="nginx")])
def test_an_answer_of_another_kind_proves_nothing(capsys: Said, reply: Reply) -> None:
    with admin_port(reply) as port:
        assert run(port.url) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("relay: ")
    assert len(said.err.splitlines()) == 1


def test_nobody_there_is_not_alive(capsys: Said) -> None:
    assert run("http://127.0.0.1:1") == 1
    assert capsys.readouterr().err.startswith("relay: no relay answers at http://127.0.0.1:1/livez: ")


def test_the_command_goes_to_the_admin_port_that_it_is_told() -> None:
    with admin_port(lambda asked: Reply(200 if asked == "GET /livez" else 500)) as port:
        done = command("status", "--live", "--admin", port.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive, relay 9.8.7\n", "")


def test_it_is_that_or_the_whole_status() -> None:
    done = command("status", "--live", "--json")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_it_imports_nothing_heavy() -> None:
    """It runs every few seconds beside the relay."""
    heavy = ("rich", "pydantic", "aiohttp", "structlog", "prometheus_client", "asyncio")
    code = f"import sys\nfrom relay.commands import live\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("[]\n", "")
