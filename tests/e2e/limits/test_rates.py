"""Rates of new connections: of a source and of the instance, over all workers, and never more than they say."""

from __future__ import annotations

import time

from tests.support.clients import connect, crowd, exchange, refused
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

SLOW = 0.01  # per second: no second token while a test runs


def test_a_source_has_its_burst_and_no_more_whatever_worker_it_meets(echo: Echo, start: Start) -> None:
    tables = f"[limits]\nconnect_rate_per_source = {SLOW}\nconnect_burst_per_source = 7\n"
    relay = start(settings(listener(echo.address), workers=2, tables=tables))
    with crowd(relay.address(), 30, ["127.0.0.1", "127.0.0.2"]) as clients:
        assert (len(clients.served), clients.refused) == (14, 46)
    with connect(relay.address(), "127.0.0.3") as client:
        assert exchange(client) == b"ping", "another source has its own"
    relay.wait_outcomes({"ok": 15, "refused_source_rate": 46})
    assert echo.served == 15


def test_the_instance_s_rate_is_for_all_sources(echo: Echo, start: Start) -> None:
    rate = 20.0
    relay = start(settings(listener(echo.address), workers=2, tables=f"[limits]\naccept_rate = {rate}\n"))
    begun = time.monotonic()
    served = 0
    for _ in range(3):
        with crowd(relay.address(), 20, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]) as clients:
            served += len(clients.served)
    assert 20 <= served <= rate + rate * (time.monotonic() - begun)
    status = relay.wait_active(0)
    assert status["connections"]["outcomes"]["refused_accept_rate"] == 180 - served


def test_tokens_come_back(echo: Echo, start: Start) -> None:
    tables = "[limits]\nconnect_rate_per_source = 5.0\nconnect_burst_per_source = 1\n"
    relay = start(settings(listener(echo.address), tables=tables))
    assert not refused_once(relay.address())
    wait_until(lambda: not refused_once(relay.address()), what="let in again")
    wait_until(lambda: not refused_once(relay.address()), what="and again")


def test_a_flood_of_refusals_is_a_few_lines_of_the_log(echo: Echo, start: Start) -> None:
    tables = '[access]\ndeny = ["127.0.0.2", "127.0.0.3"]\n'
    relay = start(settings(listener(echo.address), workers=2, tables=tables))
    for _ in range(3):
        with crowd(relay.address(), 300, ["127.0.0.2", "127.0.0.3"]) as clients:
            assert clients.refused == 600
    relay.wait_outcomes({"refused_access": 1800})
    relay.stop()  # the harness has added up what the lines say
    whole, counted = relay.events("connection"), relay.events("refusals")
    assert len(whole) <= 4, "a first line for each source and worker"
    assert {line["client"].rpartition(":")[0] for line in whole} == {"127.0.0.2", "127.0.0.3"}
    assert sum(line["count"] for line in counted) == 1800 - len(whole)
    assert len(counted) <= 20
    assert {(line["client"], line["outcome"], line["state"]) for line in counted} == {
        ("127.0.0.2", "refused_access", "PR"),
        ("127.0.0.3", "refused_access", "PR"),
    }


def refused_once(address: tuple[str, int]) -> bool:
    """Whether one more client is refused."""
    try:
        with connect(address) as client:
            return exchange(client) != b"ping"
    except ConnectionError:
        return True


def test_refused_connections_never_reach_the_upstream(echo: Echo, start: Start) -> None:
    tables = f"[limits]\naccept_rate = {SLOW}\n"
    relay = start(settings(listener(echo.address), tables=tables))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
    assert refused(relay.address())
    assert echo.served == 1
