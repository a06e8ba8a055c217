"""A connection lives no longer than `timeouts.max_age`; both directions are delivered, and others go on."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.support.clients import connect, drain, echoes, exchange
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo


def test_old_connections_are_closed_and_young_ones_are_not(echo: Echo, start: Start) -> None:
    tables = "[timeouts]\nmax_age = 3.0\nmax_age_jitter = 0.5\n[drain]\nwindow = 1.0\n"
    relay = start(settings(listener(echo.address), tables=tables))
    with ExitStack() as stack:
        began = time.monotonic()
        clients = [stack.enter_context(connect(relay.address())) for _ in range(20)]
        assert all(exchange(client) == b"ping" for client in clients)
        for client in clients:
            assert drain(client) == b""
            client.close()
        assert time.monotonic() - began >= 1.5, "none is closed before its time"
        assert echoes(relay.address())
    relay.wait_outcomes({"max_age": 20, "ok": 1})
    assert {line["state"] for line in relay.access(21) if line["outcome"] == "max_age"} == {"KD"}


def test_a_reload_sets_it_for_those_who_come_next(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    with connect(relay.address()) as old:
        assert exchange(old) == b"ping"
        relay.config.write_text(settings(listener(echo.address), tables="[timeouts]\nmax_age = 0.5\n"))
        assert relay.post("/reload")[0] == 200
        with connect(relay.address()) as new:
            assert exchange(new) == b"ping"
            assert drain(new) == b""
        assert exchange(old) == b"ping"
