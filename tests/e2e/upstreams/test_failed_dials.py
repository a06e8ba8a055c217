"""Failed dials in the metrics, by address: which one it is that does not answer."""

from __future__ import annotations

import os
import signal

from tests.support.clients import echoes, refused
from tests.support.harness import Relay, Start
from tests.support.observe import Metrics
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing, unanswering

FAMILY = "relay_dials_failed_total"


def failed(metrics: Metrics, upstream: tuple[str, int]) -> dict[str, float]:
    """Failed dials of an upstream that is an address, by outcome."""
    text = f"{upstream[0]}:{upstream[1]}"
    outcomes = ("dial_refused", "dial_timeout", "dial_failed")
    return {outcome: metrics.value(FAMILY, upstream=text, address=text, outcome=outcome) for outcome in outcomes}


def replaced(relay: Relay) -> None:
    """Kill the one worker, and wait for its successor."""
    (pid,) = relay.worker_pids()
    relay.expected_errors.add("worker died")
    os.kill(pid, signal.SIGKILL)
    relay.wait_status(lambda status: status["workers"][0]["ready"] and status["workers"][0]["pid"] not in (None, pid))


def test_each_failed_dial_is_counted_at_its_address(echo: Echo, start: Start) -> None:
    """Also those that no connection ended with, because the next address took it."""
    with refusing() as dead:
        relay = start(settings(listener(dead, echo.address)))
        # An address that has not failed is there as 0, so that a rate over it works from the first time on.
        assert set(failed(relay.metrics(), dead).values()) == {0.0}
        for _ in range(20):
            assert echoes(relay.address())
        relay.wait_outcomes({"ok": 20})
        counted = failed(relay.metrics(), dead)
        assert counted["dial_refused"] >= 1
        assert (counted["dial_timeout"], counted["dial_failed"]) == (0, 0)
        assert set(failed(relay.metrics(), echo.address).values()) == {0.0}


def test_an_address_that_swallows_syns_has_timeouts(start: Start) -> None:
    with unanswering() as silent:
        relay = start(settings(listener(silent), tables="[dial]\nconnect_timeout = 0.2\n"))
        assert refused(relay.address())
        assert failed(relay.metrics(), silent) == {"dial_refused": 0, "dial_timeout": 1, "dial_failed": 0}


def test_what_a_killed_worker_counted_is_not_lost_and_an_upstream_that_left_keeps_its_counts(
    echo: Echo, start: Start
) -> None:
    with refusing() as dead:
        relay = start(settings(listener(dead)))
        for _ in range(5):
            assert refused(relay.address())
        relay.wait_outcomes({"dial_refused": 5})
        replaced(relay)
        assert failed(relay.metrics(), dead)["dial_refused"] == 5
        for _ in range(2):
            assert refused(relay.address())
        relay.wait_status(lambda status: status["connections"]["outcomes"]["dial_refused"] == 7)
        assert failed(relay.metrics(), dead)["dial_refused"] == 7
        relay.config.write_text(settings(listener(echo.address)))
        assert relay.post("/reload") == (200, "ok\n")
        assert echoes(relay.address())
        assert failed(relay.metrics(), dead)["dial_refused"] == 7
        replaced(relay)
        assert failed(relay.metrics(), dead)["dial_refused"] == 7


def test_addresses_of_both_families_are_named_as_elsewhere(start: Start) -> None:
    with refusing() as dead:
        relay = start(settings(listener(f"[::1]:{dead[1]}")))
        assert refused(relay.address())
        metrics = relay.metrics()
        name = f"[::1]:{dead[1]}"
        assert metrics.by_label("relay_upstream_address_up", "address") == {name: 1}
        counts = [value for (family, labels), value in metrics.samples.items()
                  if family == FAMILY and dict(labels)["address"] == name]  # fmt: skip
        assert sum(counts) == 1
