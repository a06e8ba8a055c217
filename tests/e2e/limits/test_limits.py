"""Limits hold for the whole instance whatever the number of workers: never exceeded, and reached when there is room."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from tests.support.clients import Crowd, connect, crowd, exchange, refused, reset
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

WORKERS = 4
LIMIT = 23  # no multiple of the workers


def limits(name: str, value: int, more: str = "") -> str:
    return f"[limits]\n{name} = {value}\n{more}\n"


def assert_fills(relay: Relay, limit: int, kind: str, sources: Sequence[str] = ("",)) -> None:
    """Three times as many as there is room for come at once: exactly `limit` are served, the others reset."""
    before = relay.metrics().outcomes()
    with crowd(relay.address(), 3 * limit, sources) as clients:
        wanted = limit * len(sources)
        assert len(clients.served) == wanted
        assert clients.refused == 2 * wanted
        status = relay.wait_active(wanted)
        assert status["connections"]["admitted"] == wanted
        after = relay.metrics().outcomes()
        assert after[kind] - before.get(kind, 0) == 2 * wanted
        assert {label for label in after if label.startswith("refused")} == {kind}
        # Those that are in are unharmed.
        assert all(exchange(client) == b"ping" for client in clients.served)
    relay.wait_active(0)


def test_instance(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=WORKERS, tables=limits("max_connections", LIMIT)))
    for _ in range(3):
        assert_fills(relay, LIMIT, "refused_instance")
    status = relay.status()
    assert status["max_connections"] == LIMIT
    assert relay.metrics().value("relay_connections_limit") == LIMIT
    # The upstream never saw those that were refused.
    assert echo.served == 3 * LIMIT


def test_instance_over_all_listeners(echo: Echo, start: Start) -> None:
    toml = settings(
        listener(echo.address),
        listener(echo.address, name="other"),
        workers=WORKERS,
        tables=limits("max_connections", LIMIT),
    )
    relay = start(toml)
    with crowd(relay.address(), LIMIT) as one, crowd(relay.address("other"), 5) as other:
        assert (len(one.served), len(other.served), other.refused) == (LIMIT, 0, 5)
    relay.wait_active(0)
    assert relay.status()["listeners"][1]["outcomes"] == {"refused_instance": 5}


def test_listener(echo: Echo, start: Start) -> None:
    toml = settings(
        listener(echo.address, more=f"max_connections = {LIMIT}"),
        listener(echo.address, name="other"),
        workers=WORKERS,
    )
    relay = start(toml)
    for _ in range(3):
        assert_fills(relay, LIMIT, "refused_listener")
    with crowd(relay.address(), LIMIT) as full, crowd(relay.address("other"), LIMIT + 5) as other:
        assert (len(full.served), len(other.served)) == (LIMIT, LIMIT + 5)
    relay.wait_active(0)


def test_source(echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address), workers=WORKERS, tables=limits("max_connections_per_source", 7))
    relay = start(toml)
    assert_fills(relay, 7, "refused_source")
    # Each source has its own room, all at the same time.
    assert_fills(relay, 7, "refused_source", ["127.0.0.2", "127.0.0.3", "127.0.1.4", "127.1.0.5"])


def test_source_networks(echo: Echo, start: Start) -> None:
    tables = limits("max_connections_per_source", 6, "source_prefix_v4 = 24")
    relay = start(settings(listener(echo.address), workers=WORKERS, tables=tables))
    with (
        crowd(relay.address(), 6, ["127.0.0.2", "127.0.0.200"]) as joined,
        crowd(relay.address(), 6, ["127.0.1.2"]) as own,
    ):
        assert (len(joined.served), joined.refused) == (6, 6)
        assert (len(own.served), own.refused) == (6, 0)
    relay.wait_active(0)


def test_the_first_limit_in_the_way_is_the_one_that_is_named(echo: Echo, start: Start) -> None:
    toml = settings(
        listener(echo.address, more="max_connections = 4"),
        listener(echo.address, name="other"),
        workers=2,
        tables=limits("max_connections", 8, "max_connections_per_source = 6"),
    )
    relay = start(toml)
    with ExitStack() as stack:
        for address, source, count, label in (
            ("main", "127.0.0.1", 5, "refused_listener"),
            ("other", "127.0.0.1", 3, "refused_source"),
            ("other", "127.0.0.2", 3, "refused_instance"),
        ):
            before = relay.metrics().outcomes(address).get(label, 0)
            clients = stack.enter_context(crowd(relay.address(address), count, [source]))
            assert (len(clients.served), clients.refused) == (count - 1, 1)
            assert relay.metrics().outcomes(address)[label] == before + 1
    relay.wait_active(0)


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_place_is_given_back_when_a_connection_ends(echo: Echo, start: Start, how: str) -> None:
    relay = start(settings(listener(echo.address), workers=WORKERS, tables=limits("max_connections", 1)))
    for count in range(20):
        with connect(relay.address()) as client:
            assert exchange(client) == b"ping"
            assert refused(relay.address())
            if how == "reset":
                reset(client)
        relay.wait_active(0)
        assert relay.status()["connections"]["admitted"] == 0, count


def test_places_are_given_back_when_a_worker_dies(echo: Echo, start: Start) -> None:
    tables = limits("max_connections", LIMIT, f"max_connections_per_source = {LIMIT}")
    relay = start(settings(listener(echo.address, more=f"max_connections = {LIMIT}"), workers=WORKERS, tables=tables))
    relay.expected_errors.add("worker died")
    with ExitStack() as stack:
        stack.enter_context(crowd(relay.address(), LIMIT))
        relay.wait_active(LIMIT)
        victim = max(relay.status()["workers"], key=lambda item: int(item["active"]))
        os.kill(victim["pid"], signal.SIGKILL)
        relay.wait_status(lambda status: status["workers"][victim["index"]]["restarts"] == 1)
        relay.wait_active(LIMIT - victim["active"])
        again = stack.enter_context(crowd(relay.address(), LIMIT))
        assert len(again.served) == victim["active"]
        assert relay.status()["connections"]["admitted"] == LIMIT
    relay.wait_active(0)


def test_never_exceeded_while_clients_come_and_go(echo: Echo, start: Start) -> None:
    limit = 10
    relay = start(settings(listener(echo.address), workers=WORKERS, tables=limits("max_connections", limit)))
    served = [0] * 6
    stop = threading.Event()

    def come_and_go(number: int) -> None:
        while not stop.is_set():
            clients = Crowd()
            try:
                for _ in range(4):
                    with contextlib.suppress(OSError):  # refused
                        clients.served.append(connect(relay.address()))
                for client in clients.served:
                    with contextlib.suppress(OSError):
                        served[number] += exchange(client) == b"ping"
            finally:
                clients.close()

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(len(served))]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    try:
        while sum(served) < 500 or len(seen) < 50:
            seen.append(relay.status()["connections"]["admitted"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # A connection that is being decided about is announced before it is counted in or out, one at most for each worker.
    assert max(seen) <= limit + WORKERS
    relay.wait_active(0)
    assert relay.status()["connections"]["outcomes"]["refused_instance"] > 0
    assert_fills(relay, limit, "refused_instance")


def test_a_refused_client_sees_a_reset_at_once(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=limits("max_connections", 1)))
    with connect(relay.address()) as first:
        assert exchange(first) == b"ping"
        assert all(refused(relay.address()) for _ in range(10))
    relay.wait_outcomes({"ok": 1, "refused_instance": 10})
    (line,) = [line for line in relay.access(2) if line["outcome"] == "refused_instance"]
    assert line["state"] == "PR"
