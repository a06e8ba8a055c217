"""Azure's metadata service slow, failing, talking nonsense, or not there: nothing is disturbed, and it is asked on."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from relay.supervisor.azure import metadata
from relay.supervisor.azure.metadata import MAX_BYTES, Timing
from tests.supervisor.azure.azure_rig import FAST, Rig, until
from tests.support.metadata_server import OWN, Answer, MetadataServer, document, event
from tests.support.observe import PATIENCE
from tests.support.upstreams import Upstream

SHORT = 0.2  # seconds for a call where it gets no answer anyhow
FAILS, AGAIN = "Azure metadata service fails", "Azure metadata service answers again"
PREEMPT = document(event("Preempt", OWN))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with MetadataServer() as server:
        yield Rig(server)


def about(rig: Rig, message: str) -> list[str]:
    return [line["about"] for line in rig.log.said(message)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer({"error": "not\nnow"}, status=500), 'HTTP status 500: {"error": "not\\nnow"}'),
        (Answer(body="slow\ndown", status=429), "HTTP status 429: slow down"),
        (Answer(body="", status=410), "HTTP status 410:"),
        (Answer(body="x" * 1000, status=503), "HTTP status 503: " + "x" * 183),
        (
            Answer(document(), status=302, location="/metadata/instance/compute"),
            'HTTP status 302: {"DocumentIncarnation": 1, "Events": []}',
        ),
        (Answer(body=""), "not JSON: ''"),
        (Answer(body="<html>\n\x1b[31m"), "not JSON: '<html>  [31m'"),
        (Answer(body="[" * 200_000), f"not JSON: '{'[' * 200}'"),
        (Answer(body="9" * 5000), f"not JSON: '{'9' * 200}'"),
        (Answer([]), "the document is of type list, not an object"),
        (Answer({"Events": "none"}), "the document Events is of type str, not an array"),
        (Answer(body=" " * (MAX_BYTES + 1)), f"the answer is longer than {MAX_BYTES} bytes"),
        (Answer(body="x" * 8_000_000, status=500), f"the answer is longer than {MAX_BYTES} bytes"),
        (Answer(reset=True), "connection reset by peer"),
    ],
)
async def test_a_bad_answer_is_logged_once_and_asked_again(rig: Rig, answer: Answer, error: str) -> None:
    rig.server.events.play(answer)
    async with rig.watching() as client:
        await rig.named()
        if not answer.reset:  # whether that or an end is seen is the kernel's choice
            assert await rig.failed() == error
        await rig.answered(5)
        state = client.state
        assert state.ok is False
        assert state.failing_seconds is not None
        assert state.answer_age is None
        assert about(rig, FAILS) == ["scheduled events"]
        rig.server.events.play(Answer(PREEMPT))
        await until(lambda: rig.told)
        await until(lambda: rig.log.said(AGAIN))
        state = client.state
        assert (state.ok, state.error, state.failing_seconds) == (True, "", None)
        assert state.answer_age is not None
    assert (about(rig, FAILS), about(rig, AGAIN)) == (["scheduled events"], ["scheduled events"])
    assert rig.kinds() == [("begin", "Preempt")]
    assert all(line.level != "error" for line in rig.log.lines)


async def test_the_largest_answer_that_is_read(rig: Rig) -> None:
    rig.server.events.play(Answer(body=" " * (MAX_BYTES - 14) + '{"Events": []}'))
    async with rig.watching() as client:
        await until(lambda: client._polls.ok)


async def test_an_event_outlives_failures(rig: Rig) -> None:
    rig.server.events.play(Answer(PREEMPT))
    async with rig.watching() as client:
        await until(lambda: rig.told)
        rig.server.close()
        await rig.failed()
        assert len(client.state.events) == 1
        rig.server.open()
        await until(lambda: client._polls.ok)
    assert rig.kinds() == [("begin", "Preempt")]


async def test_absent_then_present(rig: Rig) -> None:
    rig.server.close()
    async with rig.watching() as client:
        assert await rig.failed() == "connection refused"
        await until(lambda: client._name_calls.ok is False)
        state = client.state
        assert (state.own_name, state.own_name_error) == ("", "connection refused")
        rig.server.events.play(Answer(PREEMPT))
        rig.server.open()
        await until(lambda: rig.told)
        await until(lambda: len(rig.log.said(AGAIN)) == 2)
        assert client.state.own_name_error == ""
    for message in (FAILS, AGAIN):
        assert sorted(about(rig, message)) == ["own name", "scheduled events"]


async def test_nothing_comes_back(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(3)]  # its queue is full: the kernel drops whatever else would connect
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with rig.watching(replace(FAST, connect=SHORT), f"http://127.0.0.1:{full.getsockname()[1]}"):
            assert await rig.failed() == "no connection in 0.2 s"
        for filler in fillers:
            filler.close()


async def test_a_name_that_does_not_exist(rig: Rig) -> None:
    async with rig.watching(url="http://metadata.invalid"):
        assert "metadata.invalid" in await rig.failed()


async def test_something_that_does_not_speak_http(rig: Rig) -> None:
    with Upstream(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as other:
        async with rig.watching(url=f"http://{other.address[0]}:{other.address[1]}"):
            assert await rig.failed()
            await until(lambda: other.served > 4)
    assert all("\n" not in line.fields["error"] for line in rig.log.lines)


async def test_what_is_compressed_is_not_unpacked(rig: Rig) -> None:
    """Nobody asked for it, and it may be a thousand times as long then."""
    packed = gzip.compress(b'{"Events": []}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    with Upstream(lambda sock: sock.sendall(head.encode() + packed)) as other:
        async with rig.watching(url=f"http://{other.address[0]}:{other.address[1]}"):
            assert (await rig.failed()).startswith("not JSON: ")


async def test_the_first_call_may_take_long(rig: Rig) -> None:
    rig.server.compute.play(Answer(hang=True))
    rig.server.events.play(Answer(document(), delay=4 * SHORT), Answer(hang=True))
    async with rig.watching(replace(FAST, call=SHORT), own_name=OWN) as client:
        await until(lambda: client._polls.good_at)
        assert rig.log.lines == []
        assert await rig.failed() == "no answer in 0.2 s"


async def test_what_fails_at_once_was_no_first_call(rig: Rig) -> None:
    rig.server.events.play(Answer(status=500), Answer(document(), delay=4 * SHORT), Answer(hang=True))
    async with rig.watching(replace(FAST, call=SHORT), own_name=OWN) as client:
        await until(lambda: client._polls.good_at)
    assert about(rig, FAILS) == ["scheduled events"]


async def test_a_first_call_without_an_answer_was_one(rig: Rig) -> None:
    rig.server.events.play(Answer(hang=True))
    timing = replace(FAST, first=SHORT, call=SHORT / 2)
    async with rig.watching(timing, own_name=OWN) as client:
        assert await rig.failed() == "no answer in 0.2 s"
        await until(lambda: client._polls.error == "no answer in 0.1 s")


async def test_polls_follow_one_another(rig: Rig) -> None:
    rig.server.events.play(Answer(document(), delay=0.03))
    async with rig.watching(replace(FAST, poll=0.05, poll_most=0.05)):
        await rig.answered(6)
    times = [request.at for request in rig.server.events.requests]
    assert rig.server.events.most_at_once == 1
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= 0.08 for gap in gaps), gaps


async def test_polls_that_fail_become_rare(rig: Rig) -> None:
    rig.server.events.play(Answer(status=500))
    async with rig.watching(replace(FAST, poll=0.05, poll_most=0.2)):
        await rig.answered(6)
    times = [request.at for request in rig.server.events.requests[:6]]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= least for gap, least in zip(gaps, [0.05, 0.1, 0.2, 0.2, 0.2], strict=True)), gaps


def test_the_pace_of_a_real_one() -> None:
    assert Timing() == Timing(poll=1.0, poll_most=10.0, connect=5.0, call=5.0, first=150.0, tries=5)


async def test_a_reboot_that_was_over_before_the_name_was_known(rig: Rig) -> None:
    rig.server.compute.play(Answer(status=404))
    rig.server.events.play(Answer(document(event("Reboot", OWN, left=None))))
    async with rig.watching():
        await rig.answered()
        rig.server.compute.play(Answer({"name": OWN}))
        await until(lambda: rig.log.said("scheduled event noted"))
        await rig.answered()
    assert rig.told == []


@pytest.mark.parametrize(
    "answer",
    [Answer(status=404), Answer({}), Answer([]), Answer({"name": ""}), Answer({"name": 7}), Answer({"name": "a\nb"}),
     Answer({"name": "x" * 129}), Answer(body="<html>")],
)  # fmt: skip
async def test_while_the_name_is_unknown_events_are_asked_for_and_match_nobody(rig: Rig, answer: Answer) -> None:
    rig.server.compute.play(answer)
    rig.server.events.play(Answer(document(event("Preempt", "", OWN))))
    async with rig.watching() as client:
        await until(lambda: client._name_calls.failures > 2)
        await rig.answered()
        state = client.state
        assert (state.ok, state.own_name, state.events) == (True, "", ())
        assert state.own_name_error
        assert rig.told == []
        rig.server.compute.play(Answer({"name": OWN}))
        await until(lambda: rig.told)
    assert (about(rig, FAILS), about(rig, AGAIN)) == (["own name"], ["own name"])


async def test_a_defect_is_logged_and_no_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a defect")

    async with rig.watching() as client:
        await rig.named()
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "parse", broken)
            assert await rig.failed() == "a defect"
            await rig.answered()
        await until(lambda: client._polls.ok)
    assert about(rig, "internal error in a question to Azure") == ["scheduled events"]


async def test_stop_does_not_wait_for_answers(rig: Rig) -> None:
    rig.server.events.play(Answer(hang=True))
    rig.server.compute.play(Answer(hang=True))
    async with rig.watching() as client:
        await until(lambda: rig.server.events.under_way and rig.server.compute.under_way)
        async with asyncio.timeout(PATIENCE / 2):
            await client.stop()
        await until(lambda: not rig.server.events.under_way and not rig.server.compute.under_way)
    assert rig.log.lines == []
