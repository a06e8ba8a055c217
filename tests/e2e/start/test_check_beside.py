"""`relay check` beside a relay that serves: whose a port is, and what a reload of that relay would not apply."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.clients import echoes
from tests.support.harness import Relay, Start
from tests.support.programs import command, environment, free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

IN_USE = "address already in use; stop what listens there (`ss -ltnp`), or choose another port"


def as_started(relay: Relay) -> dict[str, str]:
    """The variables with which the fixture `start` starts every relay."""
    return {**environment(), "RELAY_ENGINE": relay.status()["engine"], "RELAY_DRAIN__ANNOUNCE": "0.0"}


class Beside:
    """A relay at fixed ports, and settings with the same ones for `relay check`."""

    def __init__(self, start: Start, echo: Echo, *, admin: bool = True, more: str = "") -> None:
        self._echo = echo
        self._port, self._admin, self._health = free_port(), free_port() if admin else 0, free_port()
        self.more = more
        options = {} if admin else {"environ": {"RELAY_ADMIN__BIND": "127.0.0.1:0"}}
        self.relay: Relay = start(self.toml(), **options)

    def toml(self, more: str = "", bind: str = "") -> str:
        text = settings(
            listener(self._echo.address, bind=[bind or f"127.0.0.1:{self._port}"]), tables=f"{self.more}\n{more}\n"
        )
        text = text.replace('[admin]\nbind = "127.0.0.1:0"', f'[admin]\nbind = "{self.admin}"')
        return text.replace('[health]\nbind = "127.0.0.1:0"', f'[health]\nbind = "127.0.0.1:{self._health}"')

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self._admin}" if self._admin else ""

    @property
    def pid(self) -> str:
        return str(self.relay.process.pid)

    def check(
        self, path: Path, toml: str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> tuple[int, str, list[str]]:
        """The status of `relay check` with these settings, its output, and its lines on standard error."""
        path.write_text(toml)
        done = command("check", "--config", path, *arguments, env={**as_started(self.relay), **(environ or {})})
        assert echoes(self.relay.address()), "the one that serves was not disturbed"
        return done.returncode, done.stdout, done.stderr.splitlines()


def test_the_ports_of_the_running_relay_are_no_mistake(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    status, said, problems = beside.check(tmp_path / "new.toml", beside.toml())
    assert (status, problems) == (0, [])
    assert "warning" not in said
    assert beside.check(tmp_path / "new.toml", beside.toml(), "--running", beside.pid)[::2] == (0, [])


def test_neither_are_they_at_another_address(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    host, port = beside.relay.address()
    wild = beside.toml(bind=f"0.0.0.0:{port}")
    assert beside.check(tmp_path / "new.toml", wild)[::2] == (0, [])
    # And the relay itself agrees.
    beside.relay.config.write_text(wild)
    assert beside.relay.post("/reload") == (200, "ok\n")
    assert echoes((host, port))


def test_a_port_of_somebody_elses_still_is_one(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = f"127.0.0.1:{sock.getsockname()[1]}"
        status, _, problems = beside.check(tmp_path / "new.toml", beside.toml(bind=taken))
    assert (status, problems) == (1, [f"relay: listeners.main.bind: {taken}: {IN_USE}"])


def test_a_server_at_the_admin_port_that_is_no_relay_is_somebody_else(tmp_path: Path, echo: Echo, start: Start) -> None:
    """As node_exporter is: it answers HTTP, and /status with JSON might even be its own."""
    beside = Beside(start, echo)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        admin = f"127.0.0.1:{sock.getsockname()[1]}"
        sock.settimeout(0)
        toml = beside.toml().replace(beside.admin, admin)
        status, said, problems = beside.check(tmp_path / "new.toml", toml)
    assert status == 1
    assert f"relay: admin.bind: {admin}: {IN_USE}" in problems
    assert f"no relay answers at admin.bind ({admin})" in said


def test_without_an_admin_port_the_process_has_to_be_named(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo, admin=False)
    host, port = beside.relay.address()
    status, said, problems = beside.check(tmp_path / "new.toml", beside.toml())
    assert status == 1
    assert f"relay: listeners.main.bind: {host}:{port}: {IN_USE}" in problems
    assert "no relay answers at admin.bind (off)" in said
    assert "--running PID" in said
    # The environment of this one has an admin port, for the harness to ask at.
    status, said, problems = beside.check(
        tmp_path / "new.toml", beside.toml(), "--running", beside.pid, environ={"RELAY_ADMIN__BIND": ""}
    )
    assert problems == [
        "relay: RELAY_ADMIN__BIND is 127.0.0.1:0 in the environment of the running relay and empty here: only a "
        "restart applies it"
    ]


# --- what a reload would not apply ----------------------------------------------------------------------------------


def test_variables_that_only_a_restart_applies_are_named(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    environ = {"RELAY_LIMITS__MAX_CONNECTIONS": "9", "RELAY_DRAIN__ANNOUNCE": "1.5"}
    assert beside.check(tmp_path / "new.toml", beside.toml(), environ=environ)[0] == 0, "a start would do"
    status, _, problems = beside.check(tmp_path / "new.toml", beside.toml(), "--running", beside.pid, environ=environ)
    ending = "only a restart applies it"
    assert (status, problems) == (
        1,
        [
            f"relay: RELAY_DRAIN__ANNOUNCE is 0.0 in the environment of the running relay and 1.5 here: {ending}",
            "relay: RELAY_LIMITS__MAX_CONNECTIONS is not set in the environment of the running relay and 9 here: "
            f"{ending}",
        ],
    )


def test_a_variable_that_was_taken_away_is_named(tmp_path: Path, echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)), environ={"RELAY_TIMEOUTS__IDLE": "7", "RELAY_LOG__LEVEL": "info"})
    path = tmp_path / "new.toml"
    path.write_text(settings(listener(echo.address)))
    env = {**as_started(relay), "RELAY_DRAIN__ANNOUNCE": "0"}
    done = command("check", "--config", path, "--running", str(relay.process.pid), env=env)
    assert done.returncode == 1
    # Not the level, which is the default, and not the other spelling of 0.0.
    assert done.stderr.splitlines() == [
        "relay: RELAY_TIMEOUTS__IDLE is 7 in the environment of the running relay and not set here: only a restart "
        "applies it"
    ]


def test_settings_that_only_a_restart_applies_are_named(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    toml = beside.toml('[log]\nformat = "console"\n').replace("workers = 1", "workers = 2")
    assert beside.check(tmp_path / "new.toml", toml)[0] == 0, "a start would do"
    status, _, problems = beside.check(tmp_path / "new.toml", toml, "--running", beside.pid)
    assert (status, problems) == (
        1,
        [
            "relay: workers: is 1, and only a restart can make it 2",
            "relay: log.format: is 'json', and only a restart can make it 'console'",
        ],
    )
    # The relay itself says the same.
    beside.relay.expected_errors.add("reload failed")
    beside.relay.config.write_text(toml)
    code, text = beside.relay.post("/reload")
    assert (code, [f"relay: {line}" for line in text.splitlines()]) == (409, problems)


def test_another_admin_port_is_found_to_be_one(tmp_path: Path, echo: Echo, start: Start) -> None:
    """It cannot be asked where it does not listen."""
    beside = Beside(start, echo)
    other = f"127.0.0.1:{free_port()}"
    toml = beside.toml().replace(beside.admin, other)
    status, said, problems = beside.check(tmp_path / "new.toml", toml, "--running", beside.pid)
    assert (status, problems) == (
        1,
        [f"relay: admin.bind: the running relay does not listen at {other}, and only a restart can make it"],
    )
    assert f"warning: process {beside.pid} cannot be asked at admin.bind ({other})" in said


def test_a_file_that_the_environment_of_the_running_relay_makes_wrong(tmp_path: Path, echo: Echo, start: Start) -> None:
    """Right with the variables of a start, and a mistake with those that the process has."""
    relay = start(settings(listener(echo.address)), environ={"RELAY_DNS__MIN_TTL": "60"})
    path = tmp_path / "new.toml"
    path.write_text(settings(listener(echo.address), tables="[dns]\nmax_ttl = 30.0\n"))
    done = command("check", "--config", path, "--running", str(relay.process.pid), env=as_started(relay))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "relay: with the environment of the running relay: RELAY_DNS__MIN_TTL (dns.min_ttl): 60.0 is more than "
        "dns.max_ttl, which is 30.0",
        "relay: RELAY_DNS__MIN_TTL is 60 in the environment of the running relay and not set here: only a restart "
        "applies it",
    ]


def test_while_it_drains_a_reload_does_nothing(tmp_path: Path, echo: Echo, start: Start) -> None:
    beside = Beside(start, echo)
    assert beside.relay.post("/drain")[0] == 202
    path = tmp_path / "new.toml"
    path.write_text(beside.toml())
    done = command("check", "--config", path, "--running", beside.pid)
    assert done.returncode == 1
    assert "relay: draining: undrain first, or let it end" in done.stderr


@pytest.mark.parametrize("pid", ["0", "-1", "nobody", str(1 << 31)])
def test_what_is_no_process_number(tmp_path: Path, pid: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(settings(listener("127.0.0.1:9")))
    done = command("check", "--config", path, f"--running={pid}")
    assert done.returncode == 2
    assert "--running: invalid process number value" in done.stderr


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(settings(listener("127.0.0.1:9")))
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    done = command("check", "--config", path, "--running", str(child))
    assert (done.returncode, done.stderr) == (1, f"relay: --running {child}: there is no such process\n")
