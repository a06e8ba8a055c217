"""Upstreams that are the relay itself, or nobody: told, never dialled, and no storm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clients import echoes, refused
from tests.support.dns_server import NameServer
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.programs import command, free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "hub.example"
CHECKS = 0.05  # seconds: a loop through these would be a storm soon
OWN = "this relay's own address"
UNSPECIFIED = "the unspecified address, which is this machine"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])
def test_an_upstream_that_resolves_to_the_relay_is_down_with_that_reason(address: str, start: Start) -> None:
    port = free_port()
    with NameServer({NAME: [address]}) as names:
        toml = settings(
            listener(f"{NAME}:{port}", bind=[f"0.0.0.0:{port}"]), workers=2, tables=names.table(), checks=CHECKS
        )
        relay = start(toml, ready=False)
        why = UNSPECIFIED if address == "0.0.0.0" else OWN
        wait_until(lambda: "127." in relay.get("/readyz")[1] or "0.0.0.0" in relay.get("/readyz")[1], what="told")
        assert relay.get("/readyz") == (503, f"no upstream: main ({address}:{port} is {why})\n")
        for _ in range(3):
            assert refused(("127.0.0.1", port))
        status = relay.wait_outcomes({"resolve_failed": 3})
        assert status["connections"]["accepted"] == 3, "no connection but its clients'"
        (upstream,) = status["upstreams"]
        assert upstream["addresses"] == [{"address": f"{address}:{port}", "up": False, "reason": why}]
        assert relay.metrics().value("relay_upstream_up", upstream=f"{NAME}:{port}") == 0
        assert "down: " in command("status", "--admin", "http://{}:{}".format(*relay.address("admin"))).stdout


def test_one_address_that_is_the_relay_s_leaves_the_others(echo: Echo, start: Start) -> None:
    port = echo.address[1]
    with NameServer({NAME: ["127.0.0.2", "127.0.0.1", "255.255.255.255"]}) as names:
        toml = settings(
            listener(f"{NAME}:{port}", bind=["127.0.0.1:0", f"127.0.0.2:{port}"]), tables=names.table(), checks=CHECKS
        )
        relay = start(toml)
        for _ in range(10):
            assert echoes(relay.address())
        relay.wait_outcomes({"ok": 10})
        assert {line["address"] for line in relay.access(10)} == {f"127.0.0.1:{port}"}
        (line,) = [line for line in relay.events("upstream down") if line["reason"] == OWN]
        assert line["address"] == f"127.0.0.2:{port}"
        (line,) = relay.events("address refused")
        assert (line["address"], line["reason"]) == ("255.255.255.255", "the broadcast address")


def test_its_admin_and_health_ports_are_its_own(echo: Echo, start: Start) -> None:
    with NameServer({NAME: ["127.0.0.1"]}) as names:
        admin = free_port()
        toml = settings(
            listener(f"{NAME}:{admin}"), listener(echo.address, name="echo"), tables=names.table(), checks=CHECKS
        )
        relay = start(toml, environ={"RELAY_ADMIN__BIND": f"127.0.0.1:{admin}"})
        assert relay.get("/readyz") == (200, f"no upstream: main (127.0.0.1:{admin} is {OWN})\n")


def test_a_reload_that_makes_an_upstream_its_own_is_told(echo: Echo, start: Start) -> None:
    port = free_port()
    with NameServer({NAME: ["127.0.0.1"]}, ttl=300) as names:
        toml = settings(listener(f"{NAME}:{port}"), listener(echo.address, name="echo"), tables=names.table())
        relay = start(toml)
        more = listener(echo.address, name="more", bind=[f"127.0.0.1:{port}"])
        relay.config.write_text(toml + more)
        assert relay.post("/reload")[0] == 200
        wait_until(lambda: OWN in relay.get("/readyz")[1], what="told")
        assert refused(relay.address())
        relay.config.write_text(toml)
        assert relay.post("/reload")[0] == 200
        wait_until(lambda: OWN not in relay.get("/readyz")[1], what="its own no more")


@pytest.mark.parametrize(
    ("bind", "upstream", "why"),
    [
        ("0.0.0.0:{port}", "127.0.0.1:{port}", f"is {OWN}"),
        ("127.0.0.1:{port}", "[::ffff:127.0.0.1]:{port}", f"is {OWN}"),
        ("127.0.0.1:{port}", "0.0.0.0:8883", f"is {UNSPECIFIED}: never an upstream"),
        ("127.0.0.1:{port}", "[::]:8883", f"is {UNSPECIFIED}: never an upstream"),
        ("127.0.0.1:{port}", "224.0.0.1:8883", "is a multicast address: never an upstream"),
        ("127.0.0.1:{port}", "255.255.255.255:8883", "is the broadcast address: never an upstream"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_literal_one_is_a_mistake_in_the_settings(
    tmp_path: Path, verb: str, bind: str, upstream: str, why: str
) -> None:
    port = free_port()
    config = tmp_path / "relay.toml"
    config.write_text(settings(listener(upstream.format(port=port), bind=[bind.format(port=port)])))
    done = command(verb, "--config", config)
    assert done.returncode == 2
    (problem,) = done.stderr.splitlines()
    assert problem.startswith("relay: listeners[0].upstream[0]: ")
    assert why in problem


def test_check_connect_does_not_dial_the_relay_itself(tmp_path: Path) -> None:
    with Echo() as echo, NameServer({NAME: ["127.0.0.1", "0.0.0.0"]}) as names:
        port = echo.address[1]  # as if it were the running relay's
        config = tmp_path / "relay.toml"
        config.write_text(settings(listener(f"{NAME}:{port}", bind=[f"127.0.0.1:{port}"]), tables=names.table()))
        done = command("check", "--config", config, "--connect")
        assert done.returncode == 1
        assert f"127.0.0.1:{port}: never an upstream: {OWN}\n" in done.stdout
        assert f"0.0.0.0:{port}: never an upstream: {UNSPECIFIED}\n" in done.stdout
        assert echo.served == 0
