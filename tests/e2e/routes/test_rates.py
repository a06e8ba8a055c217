"""A route's rate: one for its name over all listeners and workers, and none of dial.rate."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.core.hellos import by_openssl
from tests.e2e.routes.places import route
from tests.support.clients import connect, was_reset
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "r.example"
RATE = 20.0
STORM = 30  # connections over each listener


def test_routes_of_one_name_share_their_rate_over_listeners_and_workers(echo: Echo, start: Start) -> None:
    with Echo() as limited:
        at = "{}:{}".format(*limited.address)
        more = f"rate = {RATE}"
        items = [
            listener(echo.address, name=name, more=route("r", NAME, to=at, more=more)) for name in ("main", "second")
        ]
        tables = "[dial]\nrate = 1.0\nqueue = 1000\nqueue_timeout = 60.0\n"  # which a route with a rate does not use
        relay = start(settings(*items, workers=2, tables=tables))
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            clients: list[socket.socket] = []
            sent = by_openssl(NAME)
            for name in ("main", "second") * STORM:
                client = stack.enter_context(connect(relay.address(name)))
                client.sendall(sent)
                clients.append(client)
            for client in clients:
                assert client.recv(1)
            lasted = time.monotonic() - begun
            # A burst of a tenth of a second's worth, and then the rate.
            assert limited.served == 2 * STORM <= RATE / 10 + RATE * lasted + 1
        assert lasted < 2 * STORM / 2, "dial.rate alone would take a minute"
        relay.wait_active(0)
        metrics = relay.metrics()
        for name in ("main", "second"):
            assert metrics.value("relay_route_connections_routed_total", listener=name, route="r") == STORM


def test_who_would_wait_too_long_is_refused_and_others_are_not(echo: Echo, start: Start) -> None:
    with Echo() as limited:
        routed = route("r", NAME, to="{}:{}".format(*limited.address), more="rate = 0.5")
        tables = "[dial]\nqueue = 1000\nqueue_timeout = 0.5\n"
        relay = start(settings(listener(echo.address, more=routed), tables=tables))
        sent = by_openssl(NAME)
        with connect(relay.address()) as first, connect(relay.address()) as second:
            first.sendall(sent)
            assert first.recv(1)
            second.sendall(sent)
            assert was_reset(second)
        with connect(relay.address()) as other:
            other.sendall(b"not TLS")
            assert other.recv(1)
        relay.wait_active(0)
        found = relay.status()["listeners"][0]["routes"][0]["outcomes"]
        assert found.pop("dial_queue_timeout") == 1
        assert sum(found.values()) == 1
