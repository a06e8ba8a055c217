"""dial.timeout: all dials of one connection together, however many addresses there are and however each fails."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.rates import Rate, RatePlan
from relay.engines.contract import Close, Dial, Event, Wait
from relay.outcome import Outcome
from tests.worker.connection.world import NAME, World

TIMEOUT = 5.0  # seconds: `World`'s dial.connect_timeout
ADDRESSES = tuple(f"203.0.113.{number}" for number in range(1, 21))


def fail(world: World, dial: Dial, silent: bool) -> tuple[Event, object]:
    """Let pass what the failure takes."""
    if silent:
        world.late += dial.timeout
        return Event.DIAL_TIMEOUT, None
    return Event.DIAL_FAILED, errno.ECONNREFUSED


def test_twenty_addresses_that_swallow_syns_hold_a_client_for_fifteen_seconds() -> None:
    world = World([NAME], {NAME[1]: ADDRESSES}, dial_timeout=15.0)
    connection = world.accept()
    timeouts = []
    while isinstance(action := world.last[connection], Dial):
        timeouts.append(action.timeout)
        world.send(connection, *fail(world, action, silent=True))
    assert timeouts[:2] == [TIMEOUT, TIMEOUT]
    assert len(timeouts) == 3
    assert sum(timeouts) == pytest.approx(15.0, abs=0.05)
    assert world.last[connection] == Close(True, True)
    assert world.outcome(connection) is Outcome.DIAL_TIMEOUT
    assert world.reported == [[NAME[1]]], "the name is asked for again, and its addresses are checked"


def test_the_last_dial_has_what_is_left() -> None:
    world = World([NAME], {NAME[1]: ADDRESSES}, dial_timeout=7.0)
    connection = world.accept()
    world.late += TIMEOUT
    action = world.send(connection, Event.DIAL_TIMEOUT)
    assert isinstance(action, Dial)
    assert action.timeout == pytest.approx(2.0, abs=0.05)
    assert action.address[0] in ADDRESSES


def test_an_end_of_the_time_with_addresses_left_is_a_timeout_whatever_failed_last() -> None:
    world = World([NAME], {NAME[1]: ADDRESSES}, dial_timeout=7.0)
    connection = world.accept()
    world.late += 7.0
    assert world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED) == Close(True, True)
    assert world.outcome(connection) is Outcome.DIAL_TIMEOUT


def test_the_last_address_s_own_failure_is_the_outcome() -> None:
    world = World([NAME], {NAME[1]: ADDRESSES[:1]}, dial_timeout=7.0)
    connection = world.accept()
    world.late += 7.0
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    assert world.outcome(connection) is Outcome.DIAL_REFUSED


def test_a_wait_for_dial_rate_counts_between_two_dials_and_not_before_the_first() -> None:
    rates = RatePlan(dial=Rate(1.0, 1.0), queue=100, queue_seconds=1000.0)
    world = World([NAME], {NAME[1]: ADDRESSES}, rates=rates, dial_timeout=7.0)
    world.accept()  # has the one turn that is there at once
    connection = world.accept()
    assert world.last[connection] == Wait()
    world.late += 100.0
    world.turn()
    first = world.last[connection]
    assert isinstance(first, Dial)
    assert first.timeout == TIMEOUT
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    assert world.last[connection] == Wait()
    world.late += 5.0
    world.turn()
    second = world.last[connection]
    assert isinstance(second, Dial)
    assert second.timeout == pytest.approx(2.0, abs=0.05)
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    world.late += 5.0
    world.turn()
    assert world.outcome(connection) is Outcome.DIAL_TIMEOUT
    assert world.in_use() == 1, "the other connection's"


def test_a_source_without_a_port_is_no_way_around_it() -> None:
    world = World([NAME], {NAME[1]: ADDRESSES[:3]}, sources=("192.0.2.7",), ports=1, dial_timeout=7.0)
    other = world.accept()
    connection = world.accept()
    assert isinstance(world.last[other], Dial)
    world.late += TIMEOUT
    last = world.send(connection, Event.DIAL_TIMEOUT)
    assert isinstance(last, Dial), "one of the others has no port left"
    assert last.timeout == pytest.approx(2.0, abs=0.05)
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    assert world.outcome(connection) is Outcome.NO_SOURCE_PORT


@settings(max_examples=200)
@given(
    st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 20), st.sampled_from([0.0, 3.0, 5.0, 7.0, 15.0])
)
def test_no_fates_of_dials_hold_a_connection_longer(silent: list[bool], addresses: int, timeout: float) -> None:
    world = World([NAME], {NAME[1]: ADDRESSES[:addresses]}, dial_timeout=timeout)
    connection = world.accept()
    fates = iter(silent)
    tried = set()
    while isinstance(action := world.last[connection], Dial):
        assert 0 < action.timeout <= TIMEOUT
        tried.add(action.address)
        world.send(connection, *fail(world, action, silent=next(fates, True)))
    assert world.outcome(connection) in (Outcome.DIAL_TIMEOUT, Outcome.DIAL_REFUSED)
    if timeout >= TIMEOUT:  # shorter ones are cut when dials are made up, from the settings
        assert world.late <= timeout + 0.1
    if not timeout or world.late < timeout - 0.1:
        assert len(tried) == addresses
