"""The commands beside `run`: what they print, and their exit status."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

import relay
from tests.support.clients import connect, echoes
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.programs import RELAY, ROOT, START, command, environment, launched
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing, unanswering


def write(path: Path, toml: str) -> Path:
    path.write_text(toml)
    return path


def test_version() -> None:
    result = command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"relay {relay.__version__}\n", "")


def test_no_command_is_a_mistake_that_shows_the_commands() -> None:
    result = command()
    assert result.returncode == 2
    assert "run" in result.stdout
    assert "check" in result.stdout


@pytest.mark.parametrize("arguments", [["serve"], ["run", "--port", "1"]])
def test_a_command_that_does_not_exist(arguments: list[str]) -> None:
    result = command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert arguments[-2 if len(arguments) > 1 else 0] in result.stderr


def test_check_says_what_a_start_would_do(tmp_path: Path, echo: Echo) -> None:
    path = write(tmp_path / "relay.toml", settings(listener(echo.address), workers=3))
    result = command("check", "--config", path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 workers" in result.stdout
    assert f"listener main: 127.0.0.1:0 -> {echo.address[0]}:{echo.address[1]}" in result.stdout
    assert "warning" not in result.stdout
    assert echo.served == 0


def test_check_and_run_have_the_same_warnings(tmp_path: Path, echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address), tables="[limits]\nmax_connections = 10_000_000\n")
    toml = toml.replace('[admin]\nbind = "127.0.0.1:0"', '[admin]\nbind = "0.0.0.0:0"')
    result = command("check", "--config", write(tmp_path / "relay.toml", toml))
    assert (result.returncode, result.stderr) == (0, "")
    warnings = [line.removeprefix("warning: ") for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert [warning.partition(" ")[0] for warning in warnings] == ["admin.bind:", "limits.max_connections"]
    relay = start(toml)

    def logged() -> list[str]:
        return [line["event"] for line in relay.log_lines() if line.get("level") == "warning"]

    assert logged() == warnings
    assert relay.post("/reload") == (200, "ok\n")
    wait_until(lambda: logged() == warnings * 2)


ROUTES = """\
[[listeners.routes]]
name = "a"
sni = ["*.a.example"]
upstream = ["{own}"]
backup = ["127.0.0.1:9"]
rate = 2.5
[[listeners.routes]]
name = "b"
sni = ["b.example"]
upstream = ["nowhere.invalid:1"]
optional = true
"""


def test_check_says_where_routes_lead(tmp_path: Path, echo: Echo) -> None:
    own = "{}:{}".format(*echo.address)
    path = write(tmp_path / "relay.toml", settings(listener(own, more=ROUTES.format(own=own))))
    result = command("check", "--config", path)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"route main.a: *.a.example -> {own}; while all are down: 127.0.0.1:9; 2.5/s\n" in result.stdout
    assert "route main.b: b.example -> nowhere.invalid:1; off while that does not resolve\n" in result.stdout
    result = command("check", "--config", path, "--connect")
    assert result.returncode == 1, "the backup does not answer"
    assert "upstream 127.0.0.1:9: 127.0.0.1:9: connection refused" in result.stdout
    assert "upstream nowhere.invalid:1: cannot be resolved: " in result.stdout
    assert ", and its route is optional: it would be off\n" in result.stdout
    write(path, path.read_text().replace('backup = ["127.0.0.1:9"]', ""))
    assert command("check", "--config", path, "--connect").returncode == 0


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        (
            "X.A.example.",
            "a client that asks for x.a.example: route a, to {own}; while all are down: 127.0.0.1:9; 2.5/s",
        ),
        (
            "b.example",
            "a client that asks for b.example: route b, to nowhere.invalid:1; off while that does not resolve; while "
            "that is off, refused (refused_sni)",
        ),
        ("c.example", "a client that asks for c.example: no route, to {own}"),
        ("d.example", "a client that asks for d.example: refused (refused_sni)"),
        ("", "a client that asks for no name: refused (refused_sni)"),
    ],
)
def test_check_of_a_server_name(tmp_path: Path, echo: Echo, name: str, verdict: str) -> None:
    own = "{}:{}".format(*echo.address)
    toml = settings(listener(own, more='sni = ["c.example"]\n' + ROUTES.format(own=own)))
    result = command("check", "--config", write(tmp_path / "relay.toml", toml), "--sni", name)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"listener main: {verdict.format(own=own)}\n"


CUSTOMERS = """
[[customers]]
name = "contoso"
networks = ["203.0.113.0/24", "2001:db8::/32"]
max_connections = 5000
connect_rate = 50.0
[[customers]]
name = "lab"
networks = ["203.0.113.64/26"]
listeners = ["other"]
"""
CONTOSO = "customer contoso, at most 9/s of the source, 50/s of the customer, 5000 connections of the customer, {}"


@pytest.mark.parametrize(
    ("arguments", "main", "other"),
    [
        (
            ["--client", "203.0.113.7", "--sni", "x.a.example"],
            f"from 203.0.113.7 that asks for x.a.example: {CONTOSO.format('7 connections of the listener')}: route a, "
            "to {own}; while all are down: 127.0.0.1:9; 2.5/s",
            "from 203.0.113.7 that asks for x.a.example: customer contoso, at most 9/s of the source, 50/s of the "
            "customer, 5000 connections of the customer: no route, to {own}",
        ),
        (
            ["--client", "[2001:db8::1]"],
            f"from 2001:db8::1: {CONTOSO.format('7 connections of the listener')}: admitted; where it goes depends on "
            "the name that it asks for: see --sni",
            "from 2001:db8::1: customer contoso, at most 9/s of the source, 50/s of the customer, 5000 connections of "
            "the customer: to {own}",
        ),
        (
            ["--client", "203.0.113.65"],
            "from 203.0.113.65: customer lab: refused (refused_access)",
            "from 203.0.113.65: customer lab, at most 9/s of the source: to {own}",
        ),
        (
            ["--client", "203.0.113.9"],
            "from 203.0.113.9: customer contoso: refused (refused_access)",
            "from 203.0.113.9: customer contoso: refused (refused_access)",
        ),
        (
            ["--client", "198.51.100.1", "--sni", ""],
            "from 198.51.100.1 that asks for no name: no customer: refused (refused_access)",
            "from 198.51.100.1 that asks for no name: no customer: refused (refused_access)",
        ),
    ],
)
def test_check_of_a_client(tmp_path: Path, echo: Echo, arguments: list[str], main: str, other: str) -> None:
    own = "{}:{}".format(*echo.address)
    listeners = [
        listener(own, more="max_connections = 7\n" + ROUTES.format(own=own)),
        listener(own, name="other"),
    ]
    tables = '[access]\ndeny = ["203.0.113.9"]\n[limits]\nconnect_rate_per_source = 9.0\n'
    path = write(tmp_path / "relay.toml", settings(*listeners, tables=tables) + CUSTOMERS)
    result = command("check", "--config", path, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [f"listener main: a client {main.format(own=own)}", f"listener other: a client {other.format(own=own)}"]
    assert result.stdout.splitlines() == lines


def test_check_of_a_client_without_customers(tmp_path: Path, echo: Echo) -> None:
    own = "{}:{}".format(*echo.address)
    text = settings(listener(own), tables='[access]\nallow = ["203.0.113.0/24"]\n')
    path = write(tmp_path / "relay.toml", text)
    for client, verdict in (
        ("203.0.113.7", f"no customer, no limit of its own: to {own}"),
        ("192.0.2.1", "no customer: refused (refused_access)"),
    ):
        result = command("check", "--config", path, "--client", client)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"listener main: a client from {client}: {verdict}\n"
    result = command("check", "--config", path, "--client", "host.example")
    assert result.returncode == 2
    assert "argument --client: invalid address value: 'host.example'" in result.stderr


def test_check_of_what_is_no_server_name(tmp_path: Path, echo: Echo) -> None:
    path = write(tmp_path / "relay.toml", settings(listener(echo.address)))
    result = command("check", "--config", path, "--sni", "a:1")
    assert result.returncode == 2
    assert "argument --sni: invalid server name value: 'a:1'" in result.stderr


def test_check_of_wrong_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "relay.toml", settings(listener("127.0.0.1:9"), tables="[tcp]\nkeepalive_count = 0"))
    result = command("check", "--config", path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("relay: tcp.keepalive_count: 0 is out of range")


def test_check_connect_with_upstreams_that_answer(tmp_path: Path, echo: Echo) -> None:
    path = write(tmp_path / "relay.toml", settings(listener(echo.address)))
    result = command("check", "--config", path, "--connect")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"upstream {echo.address[0]}:{echo.address[1]}" in result.stdout
    assert "connected in" in result.stdout


def test_check_connect_with_upstreams_that_do_not(tmp_path: Path, echo: Echo) -> None:
    with refusing() as dead, unanswering() as silent:
        toml = settings(listener(echo.address, dead, silent), tables="[dial]\nconnect_timeout = 0.3")
        result = command("check", "--config", write(tmp_path / "relay.toml", toml), "--connect")
    assert (result.returncode, result.stderr) == (1, "")
    assert f"127.0.0.1:{dead[1]}: connection refused" in result.stdout
    assert f"127.0.0.1:{silent[1]}: no answer in 0.3 s (dial.connect_timeout)" in result.stdout
    assert f"127.0.0.1:{echo.address[1]}: connected in" in result.stdout


def test_check_connect_asks_the_upstreams_where_a_port_is_not_to_be_had(tmp_path: Path, echo: Echo) -> None:
    """Whoever may not bind port 443 may want to know whether the hub answers."""
    path = write(tmp_path / "relay.toml", settings(listener(echo.address, bind=["192.0.2.1:443"])))
    result = command("check", "--config", path, "--connect")
    assert result.returncode == 1
    assert "connected in" in result.stdout
    assert "listeners.main.bind: 192.0.2.1:443: this machine has no such address" in result.stderr
    few = subprocess.run(
        launched([*RELAY, "check", "--config", str(path), "--connect"], 12),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert few.returncode == 1
    assert "Traceback" not in few.stderr


def test_config_prints_settings_that_mean_the_same(tmp_path: Path) -> None:
    toml = settings(listener("hub.example:8883", "[::1]:8883"), tables="[timeouts]\nidle = 12.5", workers=3)
    first = command("config", "--config", write(tmp_path / "relay.toml", toml))
    assert (first.returncode, first.stderr) == (0, "")
    second = command("config", "--config", write(tmp_path / "again.toml", first.stdout))
    assert second.stdout == first.stdout
    printed = tomllib.loads(first.stdout)
    assert printed["workers"] == 3
    assert printed["timeouts"] == {
        "client_hello": 5.0,
        "idle": 12.5,
        "half_close": 300.0,
        "max_age": 0.0,
        "max_age_jitter": 0.1,
    }
    assert printed["listeners"][0]["upstream"] == ["hub.example:8883", "[::1]:8883"]


def test_status_of_a_running_relay(echo: Echo, start: Start) -> None:
    running = start(settings(listener(echo.address)))
    host, port = running.address("admin")
    assert echoes(running.address())
    running.wait_outcomes({"ok": 1})
    with connect(running.address()):
        running.wait_active(1)
        as_json = command("status", "--admin", f"http://{host}:{port}", "--json")
        as_text = command("status", "--admin", f"http://{host}:{port}/")
    assert (as_json.returncode, as_json.stderr, as_text.returncode, as_text.stderr) == (0, "", 0, "")
    shown = json.loads(as_json.stdout)
    assert (shown["state"], shown["connections"]["accepted"], shown["connections"]["active"]) == ("ready", 2, 1)
    assert shown["pid"] == running.process.pid
    assert "connections 1 of" in as_text.stdout
    assert "2 accepted" in as_text.stdout


def test_status_without_a_relay() -> None:
    with refusing() as (host, port):
        result = command("status", "--admin", f"http://{host}:{port}")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"relay: no relay answers at http://{host}:{port}/status: ")
