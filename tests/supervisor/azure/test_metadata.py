"""Events of Azure's metadata service, as a stand-in serves them, and who is told of what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from relay.core.scheduled_events import Notice
from tests.supervisor.azure.azure_rig import FAST, Rig, until
from tests.support.metadata_server import OWN, Answer, MetadataServer, document, event
from tests.support.observe import PATIENCE

ID = event("Preempt", OWN)["EventId"]
NO_TIME = "Azure metadata service does not say what time it is, the local clock is used"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with MetadataServer() as server:
        yield Rig(server)


async def test_what_the_service_is_asked(rig: Rig) -> None:
    async with rig.watching():
        await rig.named()
        await rig.answered()
    first = rig.server.events.requests[0]
    assert (first.method, first.path) == ("GET", "/metadata/scheduledevents?api-version=2020-07-01")
    assert first.headers["Metadata"] == "true"
    (asked,) = rig.server.compute.requests
    assert (asked.method, asked.path) == ("GET", "/metadata/instance/compute?api-version=2021-02-01")
    assert rig.log.said("own name found") == [{"name": OWN}]
    assert [line.level for line in rig.log.lines] == ["info"]


async def test_a_proxy_of_the_environment_is_not_used(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with rig.watching() as client:
        await until(lambda: client._polls.ok)


@pytest.mark.parametrize("left", [30, 8])
async def test_an_eviction_with_notice(rig: Rig, left: int) -> None:
    """As `az vm simulate-eviction` brings it about."""
    rig.server.events.play(Answer(document(event("Preempt", OWN, left=left))))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        await rig.answered()
        ((what, notice),) = rig.told
        assert (what, notice.event_id, notice.kind, notice.concerns_only_this_vm) == ("begin", ID, "Preempt", True)
        assert left - 3 < notice.seconds_left <= left
        state = client.state
        assert (state.ok, state.error, state.own_name) == (True, "", OWN)
        assert [seen._replace(seconds_left=0) for seen in state.events] == [notice._replace(seconds_left=0)]
        assert state.events[0].seconds_left < notice.seconds_left
    (line,) = rig.log.said("scheduled event")
    assert line["seconds_left"] == round(notice.seconds_left, 3)


@pytest.mark.parametrize("skew", [-600.0, 600.0, -3e7, 3e7])
async def test_the_time_that_is_left_is_told_by_the_services_clock(skew: float) -> None:
    with MetadataServer(skew=skew) as server:
        rig = Rig(server)
        server.events.play(Answer(document(event("Preempt", OWN, left=30, skew=skew))))
        async with rig.watching(ahead=900.0):
            await until(lambda: rig.told)
        ((what, notice),) = rig.told
        assert (what, 27 < notice.seconds_left <= 30) == ("begin", True)
        assert not rig.log.said(NO_TIME)


async def test_a_far_event_is_far_by_the_services_clock() -> None:
    with MetadataServer(skew=3600.0) as server:
        rig = Rig(server)
        server.events.play(Answer(document(event("Redeploy", OWN, left=1800, skew=3600.0))))
        async with rig.watching(ahead=900.0):
            await until(lambda: rig.log.said("scheduled event noted"))
            server.events.play(Answer(document(event("Redeploy", OWN, left=600, skew=3600.0))))
            await until(lambda: rig.told)
        assert rig.kinds() == [("begin", "Redeploy")]


@pytest.mark.parametrize("date", ["", "soon", "Thu, 01 Jan 1970 00:00:07 GMT"])
async def test_without_the_services_time_the_local_clock_is_used_and_that_is_said_once(rig: Rig, date: str) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN, left=30)), date=date))
    async with rig.watching():
        await until(lambda: rig.told)
        await rig.answered()
        assert 27 < rig.told[0][1].seconds_left <= 30
        assert rig.log.said(NO_TIME) == [{"date": date or None}]
        rig.server.events.play(Answer(document()))
        await rig.answered()
        rig.server.events.play(Answer(document(), date=date))
        await until(lambda: len(rig.log.said(NO_TIME)) == 2)


@pytest.mark.parametrize("left", [None, -5])
async def test_an_eviction_without_notice(rig: Rig, left: float | None) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN, left=left))))
    async with rig.watching():
        await until(lambda: rig.told)
        assert [(what, notice.seconds_left) for what, notice in rig.told] == [("begin", 0.0)]


async def test_a_live_migration_is_logged_and_no_more(rig: Rig) -> None:
    """The source's example of two machines that freeze."""
    freeze = event("Freeze", "relays_11", OWN, DurationInSeconds=5)
    started = {**freeze, "EventStatus": "Started", "NotBefore": ""}
    async with rig.watching():
        await rig.named()
        for step in (document(freeze), document(started), document()):
            rig.server.events.play(Answer(step))
            await rig.answered()
    assert rig.told == []
    assert [line["status"] for line in rig.log.said("scheduled event noted")] == ["Scheduled", "Started"]


async def test_the_event_of_another_machine(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", "relays_1"), event("Reboot", "relays_120"))))
    async with rig.watching() as client:
        await rig.named()
        await rig.answered()
        assert client.state.events == ()
    assert rig.told == []
    assert len(rig.log.lines) == 1


async def test_a_reboot_that_is_put_forward_starts_and_is_over(rig: Rig) -> None:
    reboot = event("Reboot", OWN, left=900, EventSource="User")
    steps = [
        document(),
        document(reboot),
        document(event("Reboot", OWN, left=600, EventSource="User")),
        document({**reboot, "EventStatus": "Started", "NotBefore": ""}),
        document(),
    ]
    async with rig.watching():
        await rig.named()
        for step in steps:
            rig.server.events.play(Answer(step))
            await rig.answered()
    assert [what for what, _ in rig.told] == ["begin", "updated", "updated", "completed"]
    assert [round(notice.seconds_left, -2) for _, notice in rig.told] == [900, 600, 0, 0]


async def test_a_redeploy_that_is_cancelled(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Redeploy", OWN))))
    async with rig.watching():
        await until(lambda: rig.told)
        rig.server.events.play(Answer(document()))
        await until(lambda: len(rig.told) == 2)
    assert rig.kinds() == [("begin", "Redeploy"), ("cancelled", "Redeploy")]


async def test_failing_hardware_is_told_of_days_before(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Redeploy", OWN, left=7 * 86400))))
    async with rig.watching(ahead=900.0):
        await until(lambda: rig.log.said("scheduled event noted"))
        assert rig.told == []
        rig.server.events.play(Answer(document(event("Redeploy", OWN, left=800))))
        await until(lambda: rig.told)
    assert rig.kinds() == [("begin", "Redeploy")]


async def test_an_event_that_cannot_be_read_is_logged_once(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN, EventId=7), event("Terminate", OWN, EventId="b"))))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        await rig.answered()
        assert client.state.ok
    assert rig.kinds() == [("begin", "Terminate")]
    assert rig.log.said("scheduled events not understood") == [{"problems": ["Events[0]: EventId is of type int"]}]


async def test_a_name_that_is_given_is_not_asked_for(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", "other"))))
    async with rig.watching(own_name="Other"):
        await until(lambda: rig.told)
    assert rig.server.compute.requests == []


async def test_a_fault_in_what_is_told_is_logged_and_no_end(rig: Rig) -> None:
    told: list[str] = []

    def begin(notice: Notice) -> None:
        told.append(notice.event_id)
        raise LookupError("a defect")

    rig.server.events.play(Answer(document(event("Preempt", OWN), event("Reboot", OWN, EventId="b"))))
    async with rig.watching(begin=begin) as client:
        await until(lambda: len(told) == 2)
        await rig.answered()
        assert client.state.ok
    assert [line["event_id"] for line in rig.log.said("internal error upon a scheduled event")] == [ID, "b"]


# --- approval ---------------------------------------------------------------------------------------------------------


async def test_an_event_of_this_machine_alone_is_approved(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Reboot", OWN))))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        assert await client.approve(ID)
    (asked,) = rig.server.approvals.requests
    assert (asked.method, asked.path) == ("POST", "/metadata/scheduledevents?api-version=2020-07-01")
    assert asked.body == f'{{"StartRequests": [{{"EventId": "{ID}"}}]}}'
    assert asked.headers["Metadata"] == "true"
    assert rig.server.approved == [ID]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (event("Reboot", OWN, "relays_13"), "it concerns other machines as well"),
        (event("Reboot", OWN, EventId="b"), "it is not under way"),
    ],
)
async def test_what_is_not_approved(rig: Rig, seen: dict[str, Any], reason: str) -> None:
    rig.server.events.play(Answer(document(seen)))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        assert not await client.approve(ID)
    assert rig.server.approvals.requests == []
    assert rig.log.said("scheduled event not approved") == [{"event_id": ID, "reason": reason}]


async def test_an_event_that_has_started_needs_no_approval(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN, left=None))))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        assert await client.approve(ID)
    assert rig.server.approvals.requests == []


async def test_an_approval_is_tried_again(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN))))
    rig.server.approvals.play(Answer(status=500), Answer(reset=True), Answer(status=429), Answer({}))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        assert await client.approve(ID)
    assert rig.server.approved == [ID]
    assert len(rig.log.said("cannot approve a scheduled event")) == 3


async def test_an_approval_is_given_up(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN))))
    rig.server.approvals.play(Answer({"error": "Bad request"}, status=400))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        assert not await client.approve(ID)
    assert len(rig.server.approvals.requests) == FAST.tries
    assert rig.log.said("cannot approve a scheduled event")[0]["error"] == 'HTTP status 400: {"error": "Bad request"}'


async def test_stop_ends_an_approval_that_gets_no_answer(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN))))
    rig.server.approvals.play(Answer(hang=True))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        approving = asyncio.create_task(client.approve(ID))
        await until(lambda: rig.server.approvals.under_way)
        async with asyncio.timeout(PATIENCE / 2):
            await client.stop()
            assert not await approving
        assert not await client.approve(ID), "after the end"


async def test_who_waits_for_an_approval_may_go(rig: Rig) -> None:
    rig.server.events.play(Answer(document(event("Preempt", OWN))))
    rig.server.approvals.play(Answer(hang=True))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        approving = asyncio.create_task(client.approve(ID))
        await until(lambda: rig.server.approvals.under_way)
        approving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await approving
        await until(lambda: not rig.server.approvals.under_way)
