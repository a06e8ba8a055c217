"""The commands that talk to a running relay: where they look for it, whom they believe, and what they call done."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.supervisor.admin.admin_ports import Reply, admin_port
from tests.support.clients import connect, exchange
from tests.support.harness import Start
from tests.support.programs import RELAY, ROOT, START, command, environment
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing


@pytest.fixture
def engine() -> str:
    """The admin port is the supervisor's: the workers' engine makes no difference."""
    return "stream"


@pytest.mark.parametrize("words", [["status"], ["drain"], ["undrain"], ["reload"]], ids=lambda words: words[0])
def test_commands_find_the_admin_port(words: list[str], tmp_path: Path, echo: Echo, start: Start) -> None:
    running = start(settings(listener(echo.address), tables="[drain]\nwindow = 0.0"))
    host, port = running.address("admin")
    bind = f"{host}:{port}"
    # The file may have mistakes by now, as long as this can be read; and a wildcard is this machine.
    path = tmp_path / "other.toml"
    path.write_text(f'workers = "many"\n[admin]\nbind = "0.0.0.0:{port}"\n[nonsense]\n')
    ways: list[tuple[list[str | Path], dict[str, str]]] = [
        (["--config", path], {}),
        ([], {"RELAY_ADMIN__BIND": bind}),
        (["--config", path], {"RELAY_ADMIN__BIND": bind}),
        (["--config", tmp_path / "missing.toml"], {"RELAY_ADMIN__BIND": bind}),  # the environment wins, as for `run`
        (["--config", path, "--admin", f"http://{bind}"], {"RELAY_ADMIN__BIND": "127.0.0.1:1"}),
    ]
    for arguments, more in ways:
        result = command(*words, *arguments, env={**environment(), **more})
        assert (result.returncode, result.stderr) == (0, ""), (arguments, more)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('admin.bind = ""', "admin.bind is empty, so that relay has no admin port"),
        ('admin.bind = "127.0.0.1:0"', "admin.bind is 127.0.0.1:0: relay says in its log which port it was given"),
        ('admin.bind = "relay.example:8414"', 'admin.bind: "relay.example:8414" is not a literal address'),
        ("admin.bind = 8414", "admin.bind: 8414 is not a string"),
        ("admin = 8414", "admin: 8414 is not a table"),
        ("admin.bind = ", "line 1, column 14: "),
        (None, "--config {path}: no such file or directory"),
    ],
)
def test_commands_that_find_none_say_so(toml: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    if toml is not None:
        path.write_text(toml)
    for word in ("status", "drain", "undrain", "reload"):
        result = command(word, "--config", path)
        assert (result.returncode, result.stdout) == (1 if toml is None else 2, "")  # it may be there later
        (line,) = result.stderr.splitlines()
        assert problem.format(path=path) in line


@pytest.mark.parametrize(
    "words", [["status"], ["drain", "--wait"], ["undrain"], ["reload"]], ids=lambda words: words[0]
)
def test_another_program_at_the_admin_port_is_no_success(words: list[str]) -> None:
    # A program that takes every request, as node_exporter's page does.
    with admin_port(Reply(200, "<html>ok</html>", server="")) as port:
        result = command(*words, "--admin", port.url)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "what answers there is no relay" in line


def test_commands_use_no_proxy(echo: Echo, start: Start) -> None:
    running = start(settings(listener(echo.address)))
    host, port = running.address("admin")
    with refusing() as (_, dead):
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"), f"http://127.0.0.1:{dead}")
        for word in ("status", "undrain", "reload"):
            result = command(word, "--admin", f"http://{host}:{port}", env={**environment(), **proxies})
            assert (result.returncode, result.stderr) == (0, "")


def test_a_relay_that_is_killed_in_a_drain_has_not_drained(echo: Echo, start: Start) -> None:
    running = start(
        settings(listener(echo.address), tables="[drain]\nannounce = 60.0"), environ={"RELAY_DRAIN__ANNOUNCE": "60"}
    )
    host, port = running.address("admin")
    with connect(running.address()) as client:
        assert exchange(client) == b"ping"
        line = [*RELAY, "drain", "--wait", "--admin", f"http://{host}:{port}"]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            while not waiting.stdout.readline().startswith("announcing: 1 connections"):
                assert waiting.poll() is None
            running.kill()
            _, errors = waiting.communicate(timeout=START)
    assert waiting.returncode == 1
    assert errors == "relay: the relay ended before it was drained; 1 connections when it last answered\n"


def test_a_browser_may_use_the_admin_port_by_known_names_only(echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address))
    running = start(toml)
    port = running.address("admin")[1]
    page = {"Host": f"Ops.example:{port}", "Origin": f"http://ops.example:{port}", "Accept-Language": "en"}
    assert running.post("/undrain", page)[0] == 403
    assert running.post("/undrain", {"Host": page["Host"]})[0] == 200, "a program may use any name"
    # A reload makes the name known, and unknown again.
    running.config.write_text(toml.replace("[admin]", '[admin]\nhosts = ["ops.example"]'))
    assert running.post("/reload") == (200, "ok\n")
    assert running.post("/undrain", page) == (200, "ok\n")
    running.config.write_text(toml)
    assert running.post("/reload", page) == (200, "ok\n")
    assert running.post("/undrain", page)[0] == 403
