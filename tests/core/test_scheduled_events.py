"""What a document of Azure Scheduled Events is taken to say of this machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.scheduled_events import (
    LEAST_NOTICE,
    MOST_TEXT,
    SCHEDULED,
    STARTED,
    MalformedDocument,
    Notice,
    parse,
    service_time,
)
from tests.core.event_documents import GONE, IN_8, IN_30, JSON, NEARLY, OWN, PATIENT, RECEIVED, event, read


def only(*events: object) -> Notice:
    document = read(*events)
    assert document.problems == []
    (notice,) = document.notices
    return notice


def test_an_event_is_read() -> None:
    assert only(event()) == Notice(
        event_id="602d9444-d2cd-49c7-8624-8643e7171297",
        kind="Preempt",
        status=SCHEDULED,
        seconds_left=30.0,
        not_before=RECEIVED + 30.0,
        concerns_only_this_vm=True,
        source="Platform",
        description="Host server is undergoing maintenance.",
    )


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"NotBefore": IN_8}, 8.0),
        ({"NotBefore": "19 Sep 2016 18:29:47 GMT"}, 30.0),
        ({"NotBefore": "Wed, 19 Sep 2016 18:29:47 GMT"}, 30.0),  # the wrong day, as in the source
        ({"NotBefore": "2016-09-19T18:29:47Z"}, 30.0),
        ({"NotBefore": "2016-09-19T20:29:47+02:00"}, 30.0),
        ({"NotBefore": "Mon, 19 Sep 2016 17:29:47 GMT"}, 0.0),
        ({"NotBefore": "Tue, 20 Sep 2016 18:29:17 GMT"}, 86400.0),
        ({"NotBefore": ""}, 0.0),
        ({"NotBefore": None}, 0.0),
        ({"NotBefore": "", "EventStatus": STARTED}, 0.0),
        ({"NotBefore": IN_30, "EventStatus": STARTED}, 0.0),
    ],
)
def test_the_time_that_is_left(fields: dict[str, Any], left: float) -> None:
    assert only(event(**fields)).seconds_left == left


@pytest.mark.parametrize(
    "told",
    ["soon", "Mon, 31 Feb 2016 18:29:47 GMT", "Mon, 19 Sep 2016 18:29:60 GMT", "Mon, 19 Sep 0000 18:29:47 GMT",
     "Mon, 19 Sep 2016 18:29:47", "2016-09-19T18:29:47", "2016-09-19", "x" * 9999, "\ud800", 1474309787, True, [], {}],
)  # fmt: skip
@pytest.mark.parametrize("kind", sorted(LEAST_NOTICE))
def test_an_unreadable_time_is_as_near_as_the_kind_may_be(kind: str, told: object) -> None:
    document = read(event(kind, NotBefore=told))
    (notice,), (problem,) = document
    assert (notice.seconds_left, notice.not_before) == (LEAST_NOTICE[kind], None)
    assert problem.startswith("Events[0]: NotBefore is ")
    assert problem.isprintable()
    assert len(problem) < 100


def test_an_unreadable_time_of_an_unknown_kind_is_as_near_as_any_may_be() -> None:
    ((notice,), (_,)) = read(event("Levitate", NotBefore="soon"))
    assert notice.seconds_left == min(LEAST_NOTICE.values())


@pytest.mark.parametrize(
    ("date", "told"),
    [
        ("Mon, 19 Sep 2016 18:29:17 GMT", RECEIVED),
        ("Wed, 19 Sep 2016 18:29:17 GMT", RECEIVED),  # the day of the week does not count
        (None, None),
        ("", None),
        ("yesterday", None),
        ("Thu, 01 Jan 1970 00:00:07 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Mon, 32 Sep 2016 18:29:17 GMT", None),
        ("x" * 9999, None),
    ],
)
def test_what_the_services_clock_said(date: str | None, told: float | None) -> None:
    assert service_time(date) == told


@settings(PATIENT)
@given(st.text())
def test_no_date_raises_anything(date: str) -> None:
    service_time(date)


@pytest.mark.parametrize(
    ("resources", "concerned", "alone"),
    [
        ((OWN,), True, True),
        (("RELAYS_12",), True, True),
        ((OWN, "Relays_12"), True, True),
        ((OWN, "relays_13"), True, False),
        (("relays_13", OWN), True, False),
        ((OWN, 12), True, False),
        (("relays_1",), False, False),
        (("relays_123",), False, False),
        (("_relays_12",), False, False),
        ((" relays_12",), False, False),
        ((), False, False),
        ((None, 12, [OWN]), False, False),
    ],
)
def test_whom_it_concerns(resources: tuple[object, ...], concerned: bool, alone: bool) -> None:
    document = read(event(resources=resources))
    assert document.problems == []
    assert [notice.concerns_only_this_vm for notice in document.notices] == ([alone] if concerned else [])


def test_with_the_own_name_unknown_nothing_concerns_it() -> None:
    assert read(event(resources=("", OWN)), own="") == GONE


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (None, "is missing, not an object"),
        ("event", "is of type str, not an object"),
        ([], "is of type list, not an object"),
        (event(resources=OWN), "Resources is of type str, not an array"),
        (event(resources=None), "Resources is missing, not an array"),
        (event(EventId=7), "EventId is of type int"),
        (event(EventId=""), "EventId is ''"),
        (event(EventId="a\nb"), "EventId is 'a\\nb'"),
        (event(EventId="x" * 129), f"EventId is '{'x' * 40}'"),
        (event(EventType=None), "EventType is missing"),
        (event(EventStatus={}), "EventStatus is of type dict"),
    ],
)
def test_an_event_that_cannot_be_read_is_skipped_and_told_of(broken: object, problem: str) -> None:
    document = read(broken, event())
    assert [notice.seconds_left for notice in document.notices] == [30.0]
    assert document.problems == [f"Events[0]: {problem}"]


def test_what_is_wrong_with_the_event_of_another_machine_is_not_told() -> None:
    assert read(event(resources=("relays_13",), EventId=7, NotBefore="soon")) == GONE


def test_remarks_are_bounded_and_on_one_line() -> None:
    notice = only(event(Description="a\n\ud800" + "x" * 9999, EventSource=7))
    assert notice.description == ("a??" + "x" * 9999)[:MOST_TEXT]
    assert notice.source == ""


@pytest.mark.parametrize(
    "document", [None, 1, "x", [], {}, {"Events": None}, {"Events": {}}, {"error": "Bad request"}, [event()]]
)
def test_what_is_no_document(document: object) -> None:
    with pytest.raises(MalformedDocument, match="not an"):
        parse(document, OWN, RECEIVED)


@settings(PATIENT)
@given(JSON | st.fixed_dictionaries({"Events": st.lists(NEARLY | JSON, max_size=4) | JSON}), st.text(), st.floats())
def test_no_json_raises_anything_else(document: object, own: str, received: float) -> None:
    try:
        notices, problems = parse(document, own, received)
    except MalformedDocument:
        return
    assert all("\n" not in problem and len(problem) < 200 for problem in problems)
    assert all(notice.event_id.isprintable() for notice in notices)
