"""The queue of connections by age, against a plain model."""

from __future__ import annotations

import random

import pytest

from relay.engines.expiry_queue import SPARE, ExpiryQueue


def test_it_is_a_queue_by_time_that_anybody_may_leave() -> None:
    choice = random.Random(11)
    ages: ExpiryQueue[int] = ExpiryQueue()
    model: dict[int, float] = {}
    for _ in range(20_000):
        item = choice.randrange(400)
        way = choice.random()
        if way < 0.5:
            time = float(choice.randrange(1000))
            ages.add(item, time)
            model.setdefault(item, time)
        elif way < 0.8:
            ages.discard(item)
            model.pop(item, None)
        elif model:
            earliest = min(model.values())
            assert model.pop(ages.pop()) == earliest
        assert len(ages) == len(model)
    while model:
        earliest = min(model.values())
        assert model.pop(ages.pop()) == earliest
    with pytest.raises(IndexError):
        ages.pop()


def test_those_that_have_left_are_let_go() -> None:
    ages: ExpiryQueue[int] = ExpiryQueue()
    for item in range(10_000):
        ages.add(item, float(item))
        ages.discard(item - 1)
    assert len(ages) == 1
    assert len(ages._entries) <= 2 + SPARE
    ages.discard(9_999)
    assert not ages._entries
