"""Timeouts of one listener: they replace the instance's there, and nowhere else."""

from __future__ import annotations

import time

import pytest

from tests.core.hellos import hello, records, server_name
from tests.support.clients import connect, drain, exchange, was_reset
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

TIMEOUTS = "[listeners.timeouts]\n{}\n"
ROUTE = '[[listeners.routes]]\nname = "r"\nsni = ["r.example"]\nupstream = ["{}:{}"]\n'


def own(echo: Echo, name: str, text: str = "", more: str = "") -> str:
    return listener(echo.address, name=name, more=(TIMEOUTS.format(text) if text else "") + more)


def test_each_listener_has_its_own_idle_timeout_on_its_routes_too(echo: Echo, start: Start) -> None:
    route = ROUTE.format(*echo.address)
    relay = start(settings(own(echo, "main", "idle = 0.4", route), own(echo, "other"), workers=2))
    with connect(relay.address()) as routed, connect(relay.address("other")) as kept:
        first = records(hello(server_name(b"r.example")))
        assert exchange(routed, first) == first
        assert exchange(kept) == b"ping"
        assert was_reset(routed)
        assert exchange(kept) == b"ping"
    outcomes = relay.wait_outcomes({"idle_timeout": 1, "ok": 1})
    assert outcomes
    assert relay.status()["listeners"][0]["outcomes"] == {"idle_timeout": 1}


@pytest.mark.parametrize("way", ["given", "the instance's", "the listener is removed"])
def test_a_reload_changes_them_for_established_connections(echo: Echo, start: Start, way: str) -> None:
    before = settings(own(echo, "main", "idle = 600.0"), own(echo, "other", "idle = 600.0"))
    relay = start(before)
    instance = "[timeouts]\nidle = 0.4\n"
    after = {
        "given": settings(own(echo, "main", "idle = 0.4"), own(echo, "other", "idle = 600.0")),
        "the instance's": settings(own(echo, "main"), own(echo, "other", "idle = 600.0"), tables=instance),
        "the listener is removed": settings(own(echo, "other", "idle = 600.0"), tables=instance),
    }[way]
    with connect(relay.address()) as client, connect(relay.address("other")) as kept:
        assert exchange(client) == exchange(kept) == b"ping"
        relay.config.write_text(after)
        assert relay.post("/reload") == (200, "ok\n")
        assert was_reset(client)
        assert exchange(kept) == b"ping"
    relay.wait_outcomes({"idle_timeout": 1, "ok": 1})


def test_max_age_of_one_listener(echo: Echo, start: Start) -> None:
    relay = start(settings(own(echo, "main", "max_age = 0.5\nmax_age_jitter = 0.0"), own(echo, "other")))
    with connect(relay.address()) as client, connect(relay.address("other")) as kept:
        began = time.monotonic()
        assert exchange(client) == exchange(kept) == b"ping"
        assert drain(client) == b""
        assert time.monotonic() - began >= 0.5
        assert exchange(kept) == b"ping"
    relay.wait_outcomes({"max_age": 1, "ok": 1})


def test_client_hello_of_one_listener(echo: Echo, start: Start) -> None:
    sni = 'sni = ["r.example"]\n'
    relay = start(
        settings(
            listener(echo.address, name="main", more=sni + TIMEOUTS.format("client_hello = 0.3")),
            listener(echo.address, name="other", more=sni),
        )
    )
    with connect(relay.address()) as client, connect(relay.address("other")) as kept:
        assert was_reset(client)
        first = records(hello(server_name(b"r.example")))
        assert exchange(kept, first) == first
    relay.wait_outcomes({"client_hello_timeout": 1, "ok": 1})


def test_check_warns_of_a_listeners_own(echo: Echo, start: Start) -> None:
    mqtt = 'upstream = ["hub.example:8883"]\n'
    text = own(echo, "main", "idle = 60.0").replace(f'upstream = ["{echo.address[0]}:{echo.address[1]}"]\n', mqtt)
    relay = start(settings(text, own(echo, "other")), ready=False)
    (warning,) = [
        line["event"] for line in relay.log_lines() if line.get("level") == "warning" and "1767" in line["event"]
    ]
    assert warning.startswith("listeners.main.timeouts.idle: 60 s is less than 1767, the longest keep-alive of an MQTT")
