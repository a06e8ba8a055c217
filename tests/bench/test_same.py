"""What `make same` calls a difference: its rules on what two ends saw."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bench.same.end import Seen
from bench.same.kinds import Kind, both_at_once, reset_heard, reset_silent, reset_stuck_sender, says_nothing
from bench.same.rules import HAPROXY_TELLS, TOLD, judge, patience
from bench.same.script import CLIENT, UPSTREAM, Script

TOLD_OF_IT = Seen(connected=True, reset=True, told_after=0.01)


def script(kind: Kind, first: str = CLIENT) -> Script:
    """The first one of that kind."""
    scripts = map(Script.of, itertools.count())
    return next(script for script in scripts if script.kind == kind.__name__ and script.first == first)


def whole(script: Script, side: str) -> Seen:
    """All that the other end sent before its FIN, and the FIN."""
    size = script.other(side).whole
    assert size is not None
    return Seen(connected=True, received=size, digest="of all of it", fin=True)


def test_the_same_is_right() -> None:
    played = script(both_at_once)
    seen = whole(played, UPSTREAM)
    verdict = judge(played, UPSTREAM, seen, seen)
    assert not verdict.wrong
    assert not verdict.allowed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "of something else"}, "hash"),
        ({"altered": True}, "other bytes than were sent"),
        ({"received": 0}, "FIN after 0 of"),
        ({"fin": False}, "FIN: False, directly True"),
        ({"reset": True}, "told of a reset: True, directly False"),
        ({"connected": False}, "never connected"),
        ({"trouble": "EIO"}, "EIO"),
    ],
)
@pytest.mark.parametrize("haproxy", [False, True])
def test_each_difference_is_told_of(change: dict[str, object], said: str, haproxy: bool) -> None:
    played = script(both_at_once)
    right = whole(played, UPSTREAM)
    verdict = judge(played, UPSTREAM, replace(right, **change), right, haproxy=haproxy)  # type: ignore[arg-type]
    assert said in "; ".join(verdict.wrong)
    assert not verdict.allowed


@pytest.mark.parametrize(
    "change",
    [{"reset": False, "untold": True}, {"reset": False, "fin": True}, {"told_after": TOLD + 0.1}],
    ids=["not told", "a FIN instead", "told late"],
)
def test_a_reset_must_be_passed_on_in_time(change: dict[str, object]) -> None:
    played = script(reset_silent)
    seen = replace(TOLD_OF_IT, **change)  # type: ignore[arg-type]
    assert judge(played, UPSTREAM, seen, TOLD_OF_IT).wrong


@pytest.mark.parametrize("first", [CLIENT, UPSTREAM])
def test_haproxy_may_notice_a_reset_only_once_the_other_end_reads(first: str) -> None:
    """What then comes in may be megabytes: on a busy machine the reset behind them is read seconds later."""
    played = script(reset_stuck_sender, first)
    side = played.other_side(first)
    late = Seen(connected=True, received=4_000_000, reset=True, untold=True, told_after=TOLD + 0.1)
    assert judge(played, side, late, TOLD_OF_IT, haproxy=True).allowed
    assert judge(played, side, late, TOLD_OF_IT).wrong


def test_haproxy_must_tell_of_a_reset_where_it_can() -> None:
    played = script(reset_silent)
    assert judge(played, UPSTREAM, replace(TOLD_OF_IT, reset=False, untold=True), TOLD_OF_IT, haproxy=True).wrong
    assert judge(played, UPSTREAM, replace(TOLD_OF_IT, told_after=TOLD + 0.1), TOLD_OF_IT, haproxy=True).wrong


def test_haproxy_is_waited_for_as_long_as_relay_where_it_must_tell() -> None:
    assert patience(script(reset_silent), UPSTREAM, haproxy=True) == TOLD
    assert patience(script(reset_stuck_sender), UPSTREAM, haproxy=True) == HAPROXY_TELLS
    assert patience(script(reset_stuck_sender), UPSTREAM) == TOLD


def test_what_is_allowed_of_haproxy_lets_nothing_else_pass() -> None:
    """It makes an upstream's reset a FIN; the bytes before it are compared all the same."""
    played = script(reset_heard, UPSTREAM)
    direct = Seen(connected=True, received=9, digest="of nine", reset=True)
    ended = Seen(connected=True, received=9, digest="of nine", fin=True)
    assert judge(played, CLIENT, ended, direct, haproxy=True).allowed
    assert judge(played, CLIENT, replace(ended, received=8), direct, haproxy=True).wrong
    assert judge(played, CLIENT, ended, direct).wrong


def test_haproxy_may_reset_the_upstream_of_a_client_that_says_nothing_and_ends() -> None:
    played = script(says_nothing)
    right = whole(played, UPSTREAM)
    reset = replace(right, fin=False, reset=True, told_after=0.01)
    verdict = judge(played, UPSTREAM, reset, right, haproxy=True)
    assert (verdict.wrong, verdict.allowed) == ((), "the client said nothing and ended, and the upstream was reset")
    assert judge(played, UPSTREAM, reset, right).wrong, "relay may not"
    assert judge(played, UPSTREAM, replace(reset, received=5), right, haproxy=True).wrong, "nor with bytes from nowhere"
    spoken = script(both_at_once)
    assert judge(spoken, UPSTREAM, replace(whole(spoken, UPSTREAM), fin=False, reset=True), whole(spoken, UPSTREAM),
                 haproxy=True).wrong  # fmt: skip
