"""The expiry queue, against a plain model."""

from __future__ import annotations

import random

import pytest

from relay.engines.expiry_queue import DEAD_ALLOWANCE, ExpiryQueue


def test_it_is_a_queue_by_time_from_which_any_item_can_be_removed() -> None:
    choice = random.Random(11)
    queue: ExpiryQueue[int] = ExpiryQueue()
    model: dict[int, float] = {}
    for _ in range(20_000):
        item = choice.randrange(400)
        way = choice.random()
        if way < 0.5:
            time = float(choice.randrange(1000))
            queue.add(item, time)
            model.setdefault(item, time)
        elif way < 0.8:
            queue.discard(item)
            model.pop(item, None)
        elif model:
            earliest = min(model.values())
            assert model.pop(queue.pop()) == earliest
        assert len(queue) == len(model)
    while model:
        earliest = min(model.values())
        assert model.pop(queue.pop()) == earliest
    with pytest.raises(IndexError):
        queue.pop()


def test_dead_entries_are_dropped() -> None:
    queue: ExpiryQueue[int] = ExpiryQueue()
    for item in range(10_000):
        queue.add(item, float(item))
        queue.discard(item - 1)
    assert len(queue) == 1
    assert len(queue._entries) <= 2 + DEAD_ALLOWANCE
    queue.discard(9_999)
    assert not queue._entries
