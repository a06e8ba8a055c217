"""Azure's Scheduled Events: an eviction becomes a drain that fits, and a bad metadata service disturbs nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.clients import connect, drain, echoes, exchange
from tests.support.harness import Relay, Start
from tests.support.metadata_server import OWN, Answer, MetadataServer, document, event
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

ID = "C7061BAC-AFDC-4513-B24B-AA5F13A16123"


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        yield server


def watching(metadata: MetadataServer, more: str = "[drain]\nwindow = 60.0\n") -> str:
    return f'[azure]\nscheduled_events = true\nmetadata_url = "{metadata.url}"\n{more}'


def wait_known(relay: Relay) -> None:
    """Until it knows what it is called, and has an answer."""
    relay.wait_status(
        lambda status: status["scheduled_events"]["ok"] and status["scheduled_events"]["own_name"] == OWN, what="known"
    )


@pytest.mark.parametrize("left", [8.0, 3.0, None], ids=["8 s", "3 s", "none"])
def test_an_eviction_closes_everything_in_the_time_that_is_left(
    echo: Echo, start: Start, metadata: MetadataServer, left: float | None
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(10)]
        assert all(exchange(client) == b"ping" for client in clients)
        metadata.events.play(Answer(document(event("Preempt", OWN, left=left))))
        began = time.monotonic()
        relay.wait_status(lambda status: status["drain"], what="draining")
        assert relay.get("/readyz") == (503, "draining\n")
        for client in clients:
            client.settimeout(30)
            assert drain(client) == b""
            client.close()
        if left == 8.0:
            assert time.monotonic() - began > 2, "not all at once"
    relay.wait_phase("drained")
    if left is not None:  # else it has started: nobody waits
        wait_until(lambda: metadata.approved == [ID], what="the approval")
    status = relay.wait_status(lambda status: not status["connections"]["active"], what="all closed")
    ended = {label: count for label, count in status["connections"]["outcomes"].items() if count}
    # On a busy machine the last ones may be slow to answer their end, and the time is over then.
    assert ended.keys() <= {"drained", "shutdown"}
    assert ended["drained"] >= 8
    assert sum(ended.values()) == 10
    (line,) = relay.told("draining")
    assert line["reason"] == "scheduled event: Preempt"


@pytest.mark.parametrize("skew", [-600.0, 600.0], ids=["clock fast", "clock slow"])
def test_a_wrong_local_clock_changes_nothing(echo: Echo, start: Start, skew: float) -> None:
    """A drain that fits by a clock ten minutes off would cut everybody off at once, or come far too late."""
    with MetadataServer(skew=skew) as metadata:
        relay = start(settings(listener(echo.address), tables=watching(metadata)))
        wait_known(relay)
        with connect(relay.address()) as client:
            assert exchange(client) == b"ping"
            metadata.events.play(Answer(document(event("Preempt", OWN, left=8.0, skew=skew))))
            assert drain(client) == b""
        (line,) = relay.told("draining")
        assert 3.0 < line["window_seconds"] < 8.0
        relay.wait_outcomes({"drained": 1})


def test_an_event_of_a_kind_that_came_later_drains_and_comes_back_like_a_reboot(
    echo: Echo, start: Start, metadata: MetadataServer
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    upgrade = event("Reimage", OWN, left=600.0)
    metadata.events.play(Answer(document(upgrade)))
    relay.wait_phase("drained")
    wait_until(lambda: metadata.approved == [ID], what="the approval")
    metadata.events.play(Answer(document({**upgrade, "EventStatus": "Started", "NotBefore": ""})))
    wait_until(lambda: relay.events("scheduled event comes earlier"), what="it has begun")
    metadata.events.play(Answer(document(incarnation=2)))
    relay.wait_status(lambda status: status["drain"] is None, what="serving again")
    assert echoes(relay.address())
    assert relay.told("draining")[0]["reason"] == "scheduled event: Reimage"


def test_a_freeze_and_another_machines_eviction_change_nothing(
    echo: Echo, start: Start, metadata: MetadataServer
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    with connect(relay.address()) as client:
        metadata.events.play(
            Answer(document(event("Freeze", OWN, left=5.0), event("Preempt", "relays_13", left=30.0, EventId="b")))
        )
        relay.wait_status(lambda status: status["scheduled_events"]["events"], what="the freeze")
        assert relay.status()["drain"] is None
        assert exchange(client) == b"ping"
    assert metadata.approved == []


def test_an_event_that_others_share_is_not_approved_and_one_that_is_called_off_is_taken_back(
    echo: Echo, start: Start, metadata: MetadataServer
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    metadata.events.play(Answer(document(event("Reboot", OWN, "relays_13", left=600.0))))
    relay.wait_phase("drained")
    metadata.events.play(Answer(document(incarnation=2)))
    relay.wait_status(lambda status: status["drain"] is None, what="serving again")
    assert echoes(relay.address())
    assert metadata.approved == []


@pytest.mark.parametrize("phase", ["closing", "drained"])
@pytest.mark.parametrize("first", ["operator", "event"])
def test_what_an_operator_wants_is_not_taken_back(
    echo: Echo, start: Start, metadata: MetadataServer, phase: str, first: str
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    reboot = Answer(document(event("Reboot", OWN, left=600.0)))
    with ExitStack() as stack:
        if phase == "closing":
            assert exchange(stack.enter_context(connect(relay.address()))) == b"ping"
        if first == "operator":
            relay.post("/drain")
            relay.wait_phase(phase)
            metadata.events.play(reboot)
            wait_until(lambda: relay.events("scheduled event"), what="the event")
        else:
            metadata.events.play(reboot)
            relay.wait_phase(phase)
            relay.post("/drain")
        metadata.events.play(Answer(document(incarnation=2)))
        wait_until(lambda: relay.events("scheduled event cancelled"), what="the log saying so")
        status = relay.status()["drain"]
        assert (status["phase"], status["reason"]) == (phase, "admin")


def test_an_undrain_takes_back_an_operators_drain_and_not_the_event_that_began_meanwhile(
    echo: Echo, start: Start, metadata: MetadataServer
) -> None:
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.post("/drain")
        relay.wait_phase("closing")
        metadata.events.play(Answer(document(event("Preempt", OWN, left=600.0))))
        wait_until(lambda: relay.events("scheduled event"), what="the event")
        code, text = relay.post("/undrain")
        assert (code, text.partition(":")[0]) == (409, "scheduled event")
        assert relay.status()["drain"]["reason"] == "scheduled event: Preempt"
        assert relay.post("/undrain") == (200, "ok\n"), "said once more, it is meant"
        assert echoes(relay.address())
        assert exchange(client) == b"ping"


def test_an_event_that_undrain_has_taken_back_keeps_nobody_out(
    echo: Echo, start: Start, metadata: MetadataServer
) -> None:
    first, second = event("Preempt", OWN, left=600.0), event("Redeploy", OWN, left=600.0, EventId="another")
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_known(relay)
    metadata.events.play(Answer(document(first)))
    relay.wait_phase("drained")
    assert relay.post("/undrain")[0] == 200
    assert echoes(relay.address())
    metadata.events.play(Answer(document(first, second)))
    relay.wait_phase("drained")
    metadata.events.play(Answer(document(first)))
    relay.wait_status(lambda status: status["drain"] is None, what="back in service")
    assert echoes(relay.address())


def nobody_listens(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_eviction_that_meets_an_undrain_is_not_lost(echo: Echo, start: Start, metadata: MetadataServer) -> None:
    """Workers that have to be started make the undrain take its time."""
    relay = start(settings(listener(echo.address), workers=3, tables=watching(metadata)))
    relay.expected_errors.add("worker died")
    wait_known(relay)
    relay.post("/drain")
    relay.wait_phase("drained")
    for pid in relay.worker_pids():
        os.kill(pid, signal.SIGKILL)
    relay.wait_status(lambda status: all(one["pid"] is None for one in status["workers"]), what="no workers")
    metadata.events.play(Answer(document(event("Preempt", OWN, left=600.0))))
    relay.post("/undrain")  # before the event is known, or after it: then it ends the operator's drain alone
    relay.wait_status(lambda status: (status["drain"] or {}).get("reason") == "scheduled event: Preempt", what="drain")
    relay.wait_phase("drained")
    # A worker that is still starting serves who waited in its queue, and is told then.
    wait_until(lambda: nobody_listens(relay.address()), what="nobody is let in")
    assert relay.status()["drain"]["phase"] == "drained"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(hang=True),
        Answer(reset=True),
        Answer(status=500),
        Answer(status=429),
        Answer(body="<html>"),
        Answer(body='{"Events": 5}'),
        Answer(body="x" * 1_000_000),
    ],
    ids=["hangs", "reset", "500", "429", "html", "wrong", "huge"],
)
def test_a_bad_metadata_service_disturbs_nothing(
    echo: Echo, start: Start, metadata: MetadataServer, answer: Answer
) -> None:
    metadata.events.play(answer)
    relay = start(settings(listener(echo.address), tables=watching(metadata)))
    wait_until(lambda: metadata.events.requests, what="it is asked")
    assert echoes(relay.address())
    assert relay.get("/readyz")[0] == 200
    assert relay.status()["drain"] is None
    if not answer.hang:
        relay.wait_status(lambda status: status["scheduled_events"]["error"], what="the failure")
        assert relay.metrics().value("relay_scheduled_events_up") == 0
        metadata.events.play(Answer(document()))
        relay.wait_status(lambda status: status["scheduled_events"]["ok"], 30, "the recovery")


def test_without_a_metadata_service(echo: Echo, start: Start) -> None:
    with MetadataServer() as gone:
        url = gone.url
    tables = f'[azure]\nscheduled_events = true\nmetadata_url = "{url}"\n'
    relay = start(settings(listener(echo.address), tables=tables))
    relay.wait_status(lambda status: status["scheduled_events"]["error"], what="the failure")
    assert echoes(relay.address())
    assert relay.get("/readyz")[0] == 200
