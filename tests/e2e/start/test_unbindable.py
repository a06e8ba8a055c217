"""A port or an address that cannot be had stops the start: exit status 1, a line for each mistake, nothing started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import echoes
from tests.support.harness import Start
from tests.support.programs import START, command, environment, free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

IN_USE = "address already in use; stop what listens there (`ss -ltnp`), or choose another port"
UNPRIVILEGED_FROM = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
# As the user `nobody` from the moment that everything is imported; an interpreter below /root is closed to nobody.
AS_NOBODY = """\
import os, sys
import relay.cli, relay.supervisor.start, relay.settings.model, relay.engines.ring.selftest
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(relay.cli.main(sys.argv[1:]))
"""


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def complaints(path: Path, toml: str) -> list[str]:
    """What `relay run` says on standard error, having started nothing, and `relay check` as well."""
    path.write_text(toml)
    result, checked = command("run", "--config", path), command("check", "--config", path)
    assert (result.returncode, result.stdout) == (1, ""), result
    assert (checked.returncode, checked.stderr) == (1, result.stderr), checked
    return result.stderr.splitlines()


def test_a_listeners_port_that_is_taken(tmp_path: Path, taken: str) -> None:
    toml = settings(listener("127.0.0.1:9", bind=[taken]))
    assert complaints(tmp_path / "relay.toml", toml) == [f"relay: listeners.main.bind: {taken}: {IN_USE}"]


@pytest.mark.parametrize("table", ["admin", "health"])
def test_an_http_port_that_is_taken(tmp_path: Path, taken: str, table: str) -> None:
    toml = settings(listener("127.0.0.1:9")).replace(f'[{table}]\nbind = "127.0.0.1:0"', f'[{table}]\nbind = "{taken}"')
    assert complaints(tmp_path / "relay.toml", toml) == [f"relay: {table}.bind: {taken}: {IN_USE}"]


def test_every_port_that_cannot_be_had_is_named_at_once(tmp_path: Path, taken: str) -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737) and so on nobody's interface.
    toml = settings(listener("127.0.0.1:9", name="a", bind=[taken]), listener("127.0.0.1:9", bind=["192.0.2.1:1"]))
    toml = toml.replace('[admin]\nbind = "127.0.0.1:0"', '[admin]\nbind = "192.0.2.1:2"')
    assert complaints(tmp_path / "relay.toml", toml) == [
        f"relay: listeners.a.bind: {taken}: {IN_USE}",
        "relay: listeners.main.bind: 192.0.2.1:1: this machine has no such address; see `ip address`",
        "relay: admin.bind: 192.0.2.1:2: this machine has no such address; see `ip address`",
    ]


def test_a_source_address_that_this_machine_does_not_have(tmp_path: Path) -> None:
    toml = settings(listener("127.0.0.1:9"), tables='[dial]\nsource_addresses = ["127.0.0.1", "192.0.2.7"]\n')
    assert complaints(tmp_path / "relay.toml", toml) == [
        "relay: dial.source_addresses: 192.0.2.7: this machine has no such address; see `ip address`"
    ]


def test_a_second_relay_on_the_same_port_does_not_take_half_of_the_connections(
    tmp_path: Path, echo: Echo, start: Start
) -> None:
    first = start(settings(listener(echo.address)))
    host, port = first.address()
    toml = settings(listener(echo.address, bind=[f"{host}:{port}"]))
    assert complaints(tmp_path / "second.toml", toml) == [f"relay: listeners.main.bind: {host}:{port}: {IN_USE}"]
    assert echoes(first.address())


def test_a_relay_can_start_where_one_has_just_ended(echo: Echo, start: Start) -> None:
    first = start(settings(listener(echo.address)))
    host, port = first.address()
    assert echoes((host, port))
    first.stop()
    second = start(settings(listener(echo.address, bind=[f"{host}:{port}"])))
    assert echoes(second.address())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_a_privileged_port_without_the_privilege(tmp_path: Path) -> None:
    if int(UNPRIVILEGED_FROM.read_text()) <= 443:
        pytest.skip("net.ipv4.ip_unprivileged_port_start lets everybody have port 443 here")
    config = Path("/tmp") / f"relay-test-{os.getpid()}.toml"  # where nobody may read
    config.write_text(settings(listener("127.0.0.1:9", bind=["127.0.0.1:443"])))
    config.chmod(0o644)
    try:
        result = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, "run", "--config", str(config)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=START,
        )
    finally:
        config.unlink()
    assert result.returncode == 1, result
    assert result.stderr.splitlines() == [
        "relay: listeners.main.bind: 127.0.0.1:443: permission denied; port 443 needs CAP_NET_BIND_SERVICE (or root), "
        "ports from 1024 on do not"
    ]


def test_nothing_stays_bound_after_a_start_that_failed(tmp_path: Path, taken: str) -> None:
    free = free_port()
    toml = settings(listener("127.0.0.1:9", bind=[f"127.0.0.1:{free}", taken]))
    assert len(complaints(tmp_path / "relay.toml", toml)) == 1
    with socket.create_server(("127.0.0.1", free)):
        pass
