"""A question that is asked again and again: its pauses, and what is said of its failing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.asking import Asking
from tests.core.event_documents import PATIENT


def test_pauses_grow_with_failures_in_a_row() -> None:
    asking = Asking(1.0, 10.0)
    pauses = [asking.pause()]
    for _ in range(6):
        asking.failed("no", 0.0)
        pauses.append(asking.pause())
    assert pauses == [1.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    asking.worked(1.0)
    assert asking.pause() == 1.0


def test_a_million_failures() -> None:
    asking = Asking(1.0, 10.0)
    asking.failures = 1_000_000
    assert asking.pause() == 10.0


def shown(asking: Asking) -> tuple[object, ...]:
    return asking.ok, asking.error, asking.failures, asking.good_at


def test_failing_is_said_when_it_begins_and_when_it_is_over() -> None:
    asking = Asking(1.0, 10.0, steady=3)
    assert shown(asking) == (None, "", 0, None)
    assert asking.worked(10.0) is None
    assert asking.failed("first", 11.0)
    assert not asking.failed("second", 12.0)
    assert shown(asking) == (False, "second", 2, 10.0)
    assert asking.failing_since == 11.0
    assert [asking.worked(13.0), asking.worked(14.0)] == [None, None]
    assert shown(asking) == (True, "", 0, 14.0)
    assert not asking.failed("third", 15.0)
    assert asking.failing_since == 15.0
    assert [asking.worked(now) for now in (16.0, 17.0, 18.0, 19.0)] == [None, None, 7.0, None]


@settings(PATIENT)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 5))
def test_what_is_said_alternates_and_is_rare(answers: list[bool], steady: int) -> None:
    asking = Asking(1.0, 10.0, steady)
    said: list[bool] = []
    for now, good in enumerate(answers):
        if good:
            said += [True] if asking.worked(now) is not None else []
        else:
            said += [False] if asking.failed("no", now) else []
    assert said[::2] == [False] * len(said[::2])
    assert said[1::2] == [True] * len(said[1::2])
    assert len(said) <= 2 + 2 * len(answers) // (steady + 1)
