"""Several upstream addresses: shared out, checked, left out when they fail, and tried all the same when all do."""

from __future__ import annotations

from collections import Counter

from tests.support.clients import crowd, echoes, refused
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing

CHECKS = 0.1  # seconds


def addresses(relay: Relay) -> Counter[str]:
    return Counter(line["address"] for line in relay.events("connection") if line["outcome"] == "ok")


def test_connections_are_shared_out(echo: Echo, start: Start) -> None:
    with Echo() as other:
        relay = start(settings(listener(echo.address, other.address), workers=1))
        with crowd(relay.address(), 100) as clients:
            assert len(clients.served) == 100
            assert (echo.served, other.served) == (50, 50)


def test_an_address_that_the_checks_find_down_gets_nobody_and_comes_back(start: Start) -> None:
    with Echo() as one:
        with Echo() as other:
            relay = start(settings(listener(one.address, other.address), workers=2, checks=CHECKS))
            port = other.address[1]
        name = f"127.0.0.1:{port}"
        wait_until(lambda: relay.events("upstream down"), what="the checks")
        assert relay.metrics().value("relay_upstream_up", upstream=name) == 0
        assert relay.get("/readyz")[0] == 200, "the other one serves"
        for _ in range(20):
            assert echoes(relay.address())
        relay.wait_active(0)
        wait_until(lambda: addresses(relay).total() == 20, what="their lines")
        assert addresses(relay) == {f"127.0.0.1:{one.address[1]}": 20}
        with Echo("127.0.0.1", port):
            wait_until(lambda: relay.events("upstream up"), what="the checks")
            for _ in range(20):
                assert echoes(relay.address())
            wait_until(lambda: addresses(relay).total() == 40, what="their lines")
            assert addresses(relay)[name] >= 5, "in turn, on each worker"
        relay.stop()


def test_when_all_are_down_it_is_tried_all_the_same_and_readiness_tells(start: Start) -> None:
    with Echo() as only:
        relay = start(settings(listener(only.address), checks=CHECKS))
        address = only.address
    wait_until(lambda: relay.get("/readyz")[0] == 503, what="not ready")
    assert relay.get("/readyz") == (503, "no upstream: main\n")
    assert relay.get("/livez")[0] == 200
    assert '"Healthy"' in relay.get("/healthz")[1]
    assert refused(relay.address())
    status = relay.wait_active(0)
    assert status["connections"]["outcomes"]["dial_refused"] == 1, "the upstream was asked"
    with Echo(*address):
        assert echoes(relay.address()), "served before the checks have found out"
        wait_until(lambda: relay.get("/readyz")[0] == 200, what="ready again")


def test_without_checks_a_failing_address_is_left_out_after_a_few_dials(echo: Echo, start: Start) -> None:
    """Passive: the first connections find out, and are served by the next address; then nobody has to."""
    with refusing() as dead:
        relay = start(settings(listener(dead, echo.address), workers=1))
        for _ in range(30):
            assert echoes(relay.address())
        status = relay.status()
        assert status["connections"]["outcomes"]["ok"] == 30
        assert {one["name"]: one["up"] for one in status["upstreams"]} == {
            f"{dead[0]}:{dead[1]}": True,
            f"{echo.address[0]}:{echo.address[1]}": True,
        }


def test_one_listener_without_an_upstream_leaves_the_instance_ready(echo: Echo, start: Start) -> None:
    with refusing() as dead:
        relay = start(settings(listener(echo.address), listener(dead, name="dead"), checks=CHECKS))
        wait_until(lambda: relay.get("/readyz") == (200, "no upstream: dead\n"), what="told")
