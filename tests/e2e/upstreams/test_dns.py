"""Names whose answers change, fail and come back while clients come: nobody waits for a query, nobody is cut off."""

from __future__ import annotations

import contextlib
import os
import signal

from tests.support.clients import connect, echoes, exchange
from tests.support.dns_server import NameServer
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "hub.example"


def start_for(
    start: Start,
    names: NameServer,
    port: int,
    dns: str = "",
    more: str = "",
    checks: float = 0.0,
    ready: bool = True,
) -> Relay:
    tables = names.table() + "min_ttl = 1.0\n" + dns + more
    return start(settings(listener(f"{NAME}:{port}"), workers=2, tables=tables, checks=checks), ready=ready)


def served_at(relay: Relay, host: str) -> bool:
    """Whether a fresh connection goes there."""
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        name = "{}:{}".format(*client.getsockname())
    lines = wait_until(lambda: [line for line in relay.events("connection") if line["client"] == name])
    return str(lines[0]["address"]).startswith(host)


def test_a_changed_answer_is_for_new_connections_and_established_ones_stay(echo: Echo, start: Start) -> None:
    with Echo("127.0.0.2", echo.address[1]) as other, NameServer({NAME: ["127.0.0.1"]}, ttl=1) as names:
        relay = start_for(start, names, echo.address[1])
        with connect(relay.address()) as old:
            assert exchange(old) == b"ping"
            names.addresses[NAME] = ["127.0.0.2"]
            # Each worker is told by itself: until then one after another goes there.
            wait_until(lambda: all(served_at(relay, "127.0.0.2") for _ in range(8)), what="the new address")
            assert exchange(old) == b"ping"
            for _ in range(20):
                assert served_at(relay, "127.0.0.2")
        assert other.served
        (line,) = relay.told("addresses changed")
        assert (line["old"], line["new"]) == (["127.0.0.1"], ["127.0.0.2"])


def test_a_name_that_never_had_an_answer_has_none_of_any_age(echo: Echo, start: Start) -> None:
    with NameServer({}, ttl=1) as names:
        relay = start_for(start, names, echo.address[1], ready=False)

        def answer(known: bool) -> bool:
            (upstream,) = relay.status()["upstreams"]
            return (upstream["answer_age_seconds"] is not None) == known and bool(upstream["error"]) != known

        wait_until(lambda: answer(False), what="a look-up that failed")
        names.addresses[NAME] = ["127.0.0.1"]
        wait_until(lambda: answer(True), 40, what="an answer")


def test_the_last_good_answer_is_held_while_resolution_fails_and_not_for_ever(echo: Echo, start: Start) -> None:
    with NameServer({NAME: ["127.0.0.1"]}, ttl=1) as names:
        relay = start_for(start, names, echo.address[1], "hold = 3.0\n")
        assert echoes(relay.address())
        del names.addresses[NAME]
        wait_until(
            lambda: [line for line in relay.log_lines() if line["event"].startswith("cannot resolve; serving")],
            what="the failure",
        )
        assert echoes(relay.address())
        assert relay.get("/readyz")[0] == 200
        wait_until(lambda: relay.get("/readyz")[0] == 503, what="the end of the hold")
        assert relay.get("/readyz") == (503, "no upstream: main\n")
        assert relay.metrics().value("relay_upstream_up", upstream=f"{NAME}:{echo.address[1]}") == 0
        names.addresses[NAME] = ["127.0.0.1"]
        wait_until(lambda: relay.get("/readyz")[0] == 200, 40, what="resolved again")
        assert echoes(relay.address())


def test_when_every_address_fails_the_name_is_asked_for_at_once(echo: Echo, start: Start) -> None:
    """The answer would have been good for an hour."""
    with NameServer({NAME: ["127.0.0.2"]}, ttl=3600) as names:
        relay = start_for(start, names, echo.address[1], "max_ttl = 3600.0\n")
        names.addresses[NAME] = ["127.0.0.1"]

        def served() -> bool:
            with contextlib.suppress(OSError):  # reset, at any point
                return echoes(relay.address())
            return False

        wait_until(served, what="the new address")


def test_the_age_of_the_answer_is_a_metric(echo: Echo, start: Start) -> None:
    with NameServer({NAME: ["127.0.0.1"]}, ttl=1) as names:
        relay = start_for(start, names, echo.address[1])
        asked = len(names.queries)
        wait_until(lambda: len(names.queries) >= asked + 4, what="refreshed without any client")
        assert 0 <= relay.metrics().value("relay_dns_answer_age_seconds", name=NAME) < 3.0


def test_a_killed_worker_s_successor_knows_the_answer(echo: Echo, start: Start) -> None:
    with NameServer({NAME: ["127.0.0.1"]}, ttl=3600) as names:
        relay = start_for(start, names, echo.address[1], "max_ttl = 3600.0\n")
        relay.expected_errors.add("worker died")
        names.silent = True
        before = relay.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        relay.wait_status(
            lambda status: all(one["ready"] and one["pid"] not in before for one in status["workers"]),
            what="successors",
        )
        for _ in range(10):
            assert echoes(relay.address())
