"""A question that is asked again and again: its pauses, and what is said of its failing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.backoff import Backoff
from tests.core.event_documents import PATIENT


def test_pauses_grow_with_failures_in_a_row() -> None:
    backoff = Backoff(1.0, 10.0)
    pauses = [backoff.pause()]
    for _ in range(6):
        backoff.failed("no", 0.0)
        pauses.append(backoff.pause())
    assert pauses == [1.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    backoff.succeeded(1.0)
    assert backoff.pause() == 1.0


def test_a_million_failures() -> None:
    backoff = Backoff(1.0, 10.0)
    backoff.failures = 1_000_000
    assert backoff.pause() == 10.0


def shown(backoff: Backoff) -> tuple[object, ...]:
    return backoff.ok, backoff.error, backoff.failures, backoff.good_at


def test_failing_is_said_when_it_begins_and_when_it_is_over() -> None:
    backoff = Backoff(1.0, 10.0, steady=3)
    assert shown(backoff) == (None, "", 0, None)
    assert backoff.succeeded(10.0) is None
    assert backoff.failed("first", 11.0)
    assert not backoff.failed("second", 12.0)
    assert shown(backoff) == (False, "second", 2, 10.0)
    assert backoff.failing_since == 11.0
    assert [backoff.succeeded(13.0), backoff.succeeded(14.0)] == [None, None]
    assert shown(backoff) == (True, "", 0, 14.0)
    assert not backoff.failed("third", 15.0)
    assert backoff.failing_since == 15.0
    assert [backoff.succeeded(now) for now in (16.0, 17.0, 18.0, 19.0)] == [None, None, 7.0, None]


@settings(PATIENT)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 5))
def test_what_is_said_alternates_and_is_rare(answers: list[bool], steady: int) -> None:
    backoff = Backoff(1.0, 10.0, steady)
    said: list[bool] = []
    for now, good in enumerate(answers):
        if good:
            said += [True] if backoff.succeeded(now) is not None else []
        else:
            said += [False] if backoff.failed("no", now) else []
    assert said[::2] == [False] * len(said[::2])
    assert said[1::2] == [True] * len(said[1::2])
    assert len(said) <= 2 + 2 * len(answers) // (steady + 1)
