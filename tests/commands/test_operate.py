"""`relay drain`, `undrain` and `reload`: success only for what the relay itself said is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from relay.commands import operate
from tests.supervisor.admin.admin_ports import Reply, admin_port

GONE = Reply(server="somebody/1")


def state(phase: str, *, ends: bool = False) -> dict[str, Any]:
    return {"phase": phase, "ends": ends, "seconds_left": 5.0, "reason": "admin"}


def status(phase: str | None, active: int = 3, *, ends: bool = False, pid: int = 7) -> Reply:
    drain = None if phase is None else state(phase, ends=ends)
    return Reply(body={"drain": drain, "pid": pid, "connections": {"active": active}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "POLL", 0.0)


ORDERS = {"/drain": lambda url: operate.drain(url, wait=False), "/undrain": operate.undrain, "/reload": operate.reload}
DONE = {"/drain": Reply(202, state("announcing")), "/undrain": Reply(200, "ok\n"), "/reload": Reply(200, "ok\n")}


@pytest.mark.parametrize("path", ORDERS)
def test_an_order_that_is_carried_out(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with admin_port(DONE[path]) as port:
        assert ORDERS[path](port.url) == 0
        assert port.asked == [f"POST {path}"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", ORDERS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(server=""),  # anything that answers every request with 200
        Reply(202, state("announcing"), server="node_exporter"),
        Reply(200, ""),
        Reply(200, "fine"),
        Reply(202, "null"),
        Reply(202, {}),
        Reply(302),
        Reply(404),
        Reply(405),
        Reply(409, "not now"),
        Reply(403, "not you"),
        Reply(500),
    ],
    ids=lambda reply: f"{reply.server or 'nobody'}-{reply.status}-{len(reply.content)}",
)
def test_any_other_answer_is_a_failure(path: str, reply: Reply, capsys: pytest.CaptureFixture[str]) -> None:
    with admin_port(reply) as port:
        assert ORDERS[path](port.url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("relay: ")


def test_every_mistake_of_a_reload_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with admin_port(Reply(409, "one\ntwo\n")) as port:
        assert operate.reload(port.url) == 1
    assert capsys.readouterr().err == "relay: not reloaded: one\nrelay: not reloaded: two\n"


def follow(*looks: Reply, first: Reply = DONE["/drain"]) -> int:
    """`relay drain --wait` of a relay that shows these one after the other, the last one for ever."""
    replies: Iterator[Reply] = iter(looks)
    last = [looks[0]]

    def answer(request: str) -> Reply:
        if request == "POST /drain":
            return first
        last[0] = next(replies, last[0])
        return last[0]

    with admin_port(answer) as port:
        return operate.drain(port.url, wait=True)


def test_waiting_for_a_drain(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(status("announcing"), status("closing"), status("closing", 1), status("drained", 0)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "draining",
        "announcing: 3 connections, 5s left",
        "closing: 3 connections, 5s left",
        "drained: 0 connections, 5s left",
    ]


@pytest.mark.parametrize("last", [status("closing", 3, ends=True), status("announcing", 0)])
def test_a_relay_that_ends_has_drained_if_it_was_to_end_or_nobody_was_left(last: Reply) -> None:
    assert follow(last, GONE) == 0


def test_a_relay_that_ends_in_the_midst_of_a_drain_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(status("closing", 3), GONE) == 1
    assert capsys.readouterr().err == (
        "relay: the relay ended before it was drained; 3 connections when it last answered\n"
    )


def test_a_relay_that_was_never_seen_draining_has_not_drained(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(GONE) == 1
    assert capsys.readouterr().err == "relay: the relay ended before it was drained\n"
    assert follow(GONE, first=Reply(202, state("closing", ends=True))) == 0, "it was about to end, and has"


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([status(None)], "put back into service meanwhile"),
        ([status("closing"), status(None)], "put back into service meanwhile"),
        ([status("closing"), status(None, pid=8)], "another one (pid 8)"),
        ([status("closing", ends=True), status("closing", pid=8)], "another one (pid 8)"),
    ],
)
def test_a_drain_that_is_over_for_another_reason(
    looks: list[Reply], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(*looks) == 1
    assert why in capsys.readouterr().err


def test_a_relay_that_is_busy_for_a_moment_is_asked_again() -> None:
    assert follow(status("closing"), Reply(503), status("drained", 0)) == 0


def test_a_relay_that_does_not_answer_any_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operate, "SILENCE", 0.0)
    assert follow(status("closing"), Reply(503)) == 1
    assert "answers status 503" in capsys.readouterr().err
