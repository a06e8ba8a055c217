"""What successive documents of Azure Scheduled Events make the relay do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.scheduled_events import COMPLETED, STARTED, Do, Document, Watchlist, parse, service_time
from tests.core.event_documents import IN_8, IN_30, IN_38, LIKELY, OWN, PATIENT, RECEIVED, event, read


@dataclass
class Run:
    """A watchlist that gets documents at times."""

    watchlist: Watchlist = field(default_factory=Watchlist)
    now: float = 5000.0

    def see(self, *events: object, after: float = 1.0, wall: float | None = None) -> list[tuple[Do, float]]:
        self.now += after
        received = RECEIVED + self.now - 5000.0 if wall is None else wall
        return self.update(read(*events, received=received))

    def update(self, document: Document) -> list[tuple[Do, float]]:
        return [(action.do, action.notice.seconds_left) for action in self.watchlist.update(document, self.now)]


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Reboot", "Redeploy", "Reimage", "Levitate"])
def test_an_event_begins_once(kind: str) -> None:
    run = Run()
    assert run.see() == []
    assert run.see(event(kind)) == [(Do.BEGIN, 28.0)]
    for _ in range(40):
        assert run.see(event(kind)) == []
    (notice,) = run.watchlist.events(run.now)
    assert notice.seconds_left == 0.0


@pytest.mark.parametrize("kind", ["Freeze"])
def test_what_connections_survive_is_noted(kind: str) -> None:
    run = Run()
    assert run.see(event(kind)) == [(Do.NOTE, 29.0)]
    assert run.see(event(kind)) == []
    assert run.see(event(kind, EventStatus=STARTED)) == [(Do.NOTE, 0.0)]
    assert run.see() == []


def test_an_event_that_vanishes_before_its_start_is_cancelled() -> None:
    run = Run()
    assert run.see(event("Reboot")) == [(Do.BEGIN, 29.0)]
    assert run.see() == [(Do.CANCELLED, 28.0)]
    assert run.see() == []
    assert run.watchlist.events(run.now) == ()


def test_an_event_that_vanishes_after_its_start_is_over() -> None:
    run = Run()
    assert run.see(event("Reboot")) == [(Do.BEGIN, 29.0)]
    assert run.see(event("Reboot", EventStatus=STARTED, NotBefore="")) == [(Do.UPDATE, 0.0)]
    assert run.see(event("Reboot", EventStatus=STARTED, NotBefore="")) == []
    assert run.see() == [(Do.COMPLETED, 0.0)]


def test_one_that_says_itself_that_it_is_over() -> None:
    run = Run()
    run.see(event(EventStatus=STARTED))
    assert run.see(event(EventStatus=COMPLETED), "broken") == [(Do.COMPLETED, 0.0)]
    assert run.see(event(EventStatus=COMPLETED)) == []


def test_an_event_that_comes_back_begins_again() -> None:
    run = Run()
    assert [run.see(event()), run.see(), run.see(event())] == [
        [(Do.BEGIN, 29.0)],
        [(Do.CANCELLED, 28.0)],
        [(Do.BEGIN, 27.0)],
    ]


def test_a_document_that_cannot_be_read_in_full_cancels_nothing() -> None:
    run = Run()
    run.see(event())
    assert run.see(event(EventId=7)) == []
    assert run.see("broken") == []
    assert run.see(event()) == []
    assert run.see() == [(Do.CANCELLED, 25.0)]


def test_a_time_that_is_brought_forward() -> None:
    run = Run()
    assert run.see(event(NotBefore=IN_38)) == [(Do.BEGIN, 37.0)]
    assert run.see(event(NotBefore=IN_30)) == [(Do.UPDATE, 28.0)]
    assert run.see(event(NotBefore=IN_38)) == [], "it has begun"
    assert run.see(event(NotBefore=IN_8)) == [(Do.UPDATE, 4.0)]
    assert run.see(event(NotBefore="")) == [(Do.UPDATE, 0.0)]


def test_an_unreadable_time_that_stays_so_comes_nearer() -> None:
    run = Run()
    assert run.see(event(NotBefore="soon")) == [(Do.BEGIN, 30.0)]
    assert run.see(event(NotBefore="soon"), after=10) == []
    assert run.watchlist.events(run.now)[0].seconds_left == 20.0
    assert run.see(event(NotBefore=IN_30)) == [(Do.UPDATE, 18.0)]


@settings(PATIENT)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_steps_of_the_wall_clock_change_nothing_of_what_is_known(steps: list[float]) -> None:
    run = Run()
    assert run.see(event()) == [(Do.BEGIN, 29.0)]
    for step in steps:
        assert run.see(event(), after=0.5, wall=RECEIVED + step) == []
    assert run.see(event(NotBefore=IN_8), after=0.0, wall=0.0) == [(Do.UPDATE, max(0.0, 7.0 - 0.5 * len(steps)))]


def test_a_far_event_begins_when_it_comes_near() -> None:
    run = Run(Watchlist(ahead=20.0))
    assert run.see(event("Redeploy")) == [(Do.NOTE, 29.0)]
    assert run.see(event("Redeploy"), after=8) == []
    assert run.see(event("Redeploy")) == [(Do.BEGIN, 20.0)]
    assert run.see() == [(Do.CANCELLED, 19.0)]
    assert run.see(event("Redeploy", NotBefore=IN_38)) == [(Do.NOTE, 26.0)]
    assert run.see(event("Redeploy", NotBefore=IN_30)) == [(Do.BEGIN, 17.0)]


def test_a_far_event_may_be_put_off() -> None:
    run = Run(Watchlist(ahead=20.0))
    assert run.see(event("Redeploy")) == [(Do.NOTE, 29.0)]
    assert run.see(event("Redeploy", NotBefore=IN_38)) == [(Do.NOTE, 36.0)]
    assert run.see(event("Redeploy", NotBefore=IN_38), after=15, wall=0.0) == []
    assert run.see(event("Redeploy", NotBefore=IN_38)) == [(Do.BEGIN, 20.0)]


def test_a_far_event_at_an_unreadable_time_comes_nearer() -> None:
    run = Run(Watchlist(ahead=20.0))
    assert run.see(event(NotBefore="soon")) == [(Do.NOTE, 30.0)]
    assert run.see(event(NotBefore="soon"), after=9) == []
    assert run.see(event(NotBefore="soon")) == [(Do.BEGIN, 20.0)]


def test_a_far_event_that_vanishes_is_nothing_to_anybody() -> None:
    run = Run(Watchlist(ahead=20.0))
    assert run.see(event("Redeploy")) == [(Do.NOTE, 29.0)]
    assert run.see() == []


@pytest.mark.parametrize("kind", ["Reboot", "Redeploy", "Reimage", "Levitate"])
def test_a_machine_that_comes_back_from_a_reboot_does_not_get_ready_for_it(kind: str) -> None:
    run = Run()
    assert run.see(event(kind, EventStatus=STARTED, NotBefore="")) == [(Do.NOTE, 0.0)]
    assert run.see(event(kind, EventStatus=STARTED, NotBefore="")) == []
    assert run.see() == []
    assert run.see(event(kind, EventStatus=STARTED, NotBefore="")) == [(Do.BEGIN, 0.0)], "another one, without notice"


def test_a_reboot_that_has_started_may_be_put_off() -> None:
    run = Run()
    assert run.see(event("Reboot", EventStatus=STARTED, NotBefore="")) == [(Do.NOTE, 0.0)]
    assert run.see(event("Reboot")) == [(Do.BEGIN, 28.0)]


@pytest.mark.parametrize("kind", ["Preempt", "Terminate"])
def test_an_end_that_has_started_begins_whenever_it_is_seen(kind: str) -> None:
    assert Run().see(event(kind, EventStatus=STARTED, NotBefore="")) == [(Do.BEGIN, 0.0)]


def test_an_unknown_kind_comes_back_like_a_reboot() -> None:
    run = Run()
    assert run.see() == []
    assert run.see(event("Levitate")) == [(Do.BEGIN, 28.0)]
    assert run.see(event("Levitate", EventStatus=STARTED, NotBefore="")) == [(Do.UPDATE, 0.0)]
    assert run.see() == [(Do.COMPLETED, 0.0)]


@settings(PATIENT)
@given(st.floats(-1e6, 1e6), st.integers(0, 3600))
def test_the_time_that_is_left_is_the_services_whatever_the_local_clock_says(skew: float, left: int) -> None:
    """The document and the answer's Date are of one clock, which may be any."""
    told_at = RECEIVED + skew
    stamp = formatdate(told_at + left, usegmt=True)
    date = service_time(formatdate(told_at, usegmt=True))
    assert date is not None
    (notice,) = parse({"Events": [event("Preempt", NotBefore=stamp)]}, OWN, date).notices
    assert abs(notice.seconds_left - left) <= 1.0


def test_several_events_are_kept_apart() -> None:
    run = Run()
    assert run.see(event("Reboot", EventId="a", NotBefore=IN_38)) == [(Do.BEGIN, 37.0)]
    both = event("Reboot", EventId="a", NotBefore=IN_38), event("Preempt", EventId="b")
    assert run.see(*both) == [(Do.BEGIN, 28.0)]
    actions = run.watchlist.update(read(both[1]), run.now)
    assert [(action.do, action.notice.event_id) for action in actions] == [(Do.CANCELLED, "a")]
    assert run.watchlist.get("a", run.now) is None
    assert run.watchlist.get("b", run.now + 8.0) == read(both[1]).notices[0]._replace(seconds_left=20.0)


@settings(PATIENT)
@given(
    st.lists(st.tuples(st.lists(LIKELY, max_size=4), st.floats(0.0, 60.0), st.floats(-1e6, 1e6)), max_size=12),
    st.sampled_from([math.inf, 20.0, 0.0]),
)
def test_whatever_comes_each_event_begins_once_and_ends_once(
    documents: list[tuple[list[dict[str, Any]], float, float]], ahead: float
) -> None:
    watchlist = Watchlist(ahead)
    begun: dict[str, float] = {}  # until when
    now = 5000.0
    for events, after, step in documents:
        now += after
        document = read(*events, received=RECEIVED + step)
        for do, notice in watchlist.update(document, now):
            until = now + notice.seconds_left
            if do is Do.BEGIN:
                assert notice.event_id not in begun
                assert notice.kind != "Freeze"
                assert notice.seconds_left <= ahead
                begun[notice.event_id] = until
            elif do is Do.UPDATE:
                assert until <= max(now, begun[notice.event_id])
                begun[notice.event_id] = until
            elif do is not Do.NOTE:
                del begun[notice.event_id]
        assert begun.keys() <= {notice.event_id for notice in watchlist.events(now)}
