"""A limit of held bytes leaves the ring its fast way, and gives it back when there is room again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.engines.contract import Event
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.pump import BUFFER_SIZE, BUFFERS, MIN_BUFFERS, buffer_count
from relay.engines.ring.records import Link
from tests.engines.kinds import KINDS
from tests.engines.lab import Couple, Lab
from tests.engines.peers import push, receive, reset
from tests.engines.running import RunningEngine

SMALL_LIMIT = 1 << 17  # bytes; buffers take half of it, and 30 connections hold ten times the other half


@given(st.integers(1, 1 << 40))
def test_buffers_leave_half_of_the_bound(limit: int) -> None:
    count = buffer_count(limit)
    assert count & count - 1 == 0
    assert MIN_BUFFERS <= count <= BUFFERS
    assert count == MIN_BUFFERS or 2 * count * BUFFER_SIZE <= limit
    assert count == BUFFERS or 4 * count * BUFFER_SIZE > limit


def test_without_a_bound_there_are_all_buffers() -> None:
    assert buffer_count(0) == buffer_count(64 << 20) == BUFFERS


def receives(engine: RunningEngine, couple: Couple) -> bool:
    """Whether messages come by a receive of the ring, after some have passed; else each is read with recv(2)."""
    assert isinstance(engine.engine, RingEngine)
    for number in range(50):
        couple.client.sendall(number.to_bytes(4, "big"))
        assert receive(couple.upstream, 4) == number.to_bytes(4, "big")
        couple.upstream.sendall(number.to_bytes(4, "big"))
        assert receive(couple.client, 4) == number.to_bytes(4, "big")
    link = couple.handler.link
    assert isinstance(link, Link)
    return engine.call(lambda: bool(link.client.armed))


@pytest.mark.parametrize("limit", [1 << 20, 2 << 20, 3_000_000, 4 << 20, 5 << 20, 64 << 20])
def test_messages_take_the_fast_way_whatever_the_bound(limit: int) -> None:
    lab = Lab(KINDS.get("ring") or KINDS["ring-single"])
    engine = lab.start(held_limit=limit)
    assert receives(engine, lab.couple(engine))
    lab.close()


@pytest.mark.skipif("ring" not in KINDS, reason="receives are armed one by one here: they never bring so much at once")
def test_the_fast_way_comes_back_when_those_who_did_not_read_have_gone() -> None:
    """They are reset: nothing of what was held for them is ever taken.

    A connection whose upstream does not read holds 20 to 50 KB, as soon as the buffers of both kernels are full.
    """
    lab = Lab(KINDS["ring"])
    engine = lab.start(held_limit=SMALL_LIMIT)
    line = lab.line(engine, buffers=65536)
    couples = [line.open() for _ in range(30)]
    assert isinstance(engine.engine, RingEngine)
    interest = engine.engine._interest

    def under_pressure() -> bool:
        for couple in couples:
            push(couple.client, bytes(65536))
        return interest.under_pressure

    engine.wait(under_pressure, "more is held than the limit allows")
    for couple in couples:
        reset(couple.client)
        assert engine.ended(couple.handler) == (Event.CLIENT_RESET,)
    assert receives(engine, line.open())
    lab.close()
