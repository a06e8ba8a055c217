"""Which address is dialled when: every address of every upstream in turn, each connection beginning with the next."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from relay.dial import Route
from relay.engines.contract import Close, Dial, Event, Wait
from relay.outcome import Outcome
from tests.core.world import LITERAL, NAME, OTHER_NAME, World


def dialled(world: World, *, answers: dict[str, tuple[str, ...]] | None = None) -> list[str]:
    """The addresses that one connection tries until there are no more."""
    connection = world.accept()
    tried: list[str] = []
    while True:
        action = world.last[connection]
        if isinstance(action, Wait):
            assert answers is not None
            world.answer(*answers[world.asked[0][0]])
        elif isinstance(action, Dial):
            tried.append(action.address[0])
            world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
        else:
            assert action == Close(True, True)
            return tried


@pytest.mark.parametrize("asks", [False, True])
def test_all_addresses_of_all_upstreams_are_tried_in_turn(asks: bool) -> None:
    addresses = {NAME[1]: ("203.0.113.1", "203.0.113.2", "2001:db8::1"), OTHER_NAME[1]: ("203.0.113.3",)}
    world = World([LITERAL, NAME, OTHER_NAME], {} if asks else addresses)
    expected = sorted([LITERAL[1], *addresses[NAME[1]], *addresses[OTHER_NAME[1]]])
    orders = [dialled(world, answers=addresses) for _ in range(12)]
    for order in orders:
        assert sorted(order) == expected
    assert Counter(order[0] for order in orders) == {
        LITERAL[1]: 4,
        "203.0.113.1": 2,
        "203.0.113.2": 2,
        "203.0.113.3": 4,
    }


def test_ipv6_addresses_come_after_ipv4_ones_and_take_turns_as_well() -> None:
    """A network without a way for IPv6 costs nobody a timeout as long as IPv4 answers."""
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2")})
    orders = [dialled(world) for _ in range(2)]
    assert orders == [
        ["203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2"],
        ["203.0.113.2", "203.0.113.1", "2001:db8::2", "2001:db8::1"],
    ]


def test_the_first_upstream_is_the_first_to_be_tried() -> None:
    world = World([LITERAL, (2, "198.51.100.2", 8883)])
    assert [dialled(world)[0] for _ in range(4)] == ["198.51.100.1", "198.51.100.2", "198.51.100.1", "198.51.100.2"]


def test_the_addresses_of_a_single_name_take_turns() -> None:
    """The most common configuration: one hub, whose name has several addresses."""
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2", "203.0.113.3")})
    orders = [dialled(world) for _ in range(6)]
    assert Counter(order[0] for order in orders) == {"203.0.113.1": 2, "203.0.113.2": 2, "203.0.113.3": 2}
    assert all(len(order) == 3 for order in orders)


@pytest.mark.parametrize("addresses", [2, 3, 4])
def test_addresses_take_turns_for_each_of_several_upstreams(addresses: int) -> None:
    known = {
        NAME[1]: tuple(f"203.0.113.{n}" for n in range(addresses)),
        OTHER_NAME[1]: tuple(f"192.0.2.{n}" for n in range(addresses)),
    }
    world = World([NAME, OTHER_NAME], known)
    first = Counter(dialled(world)[0] for _ in range(2 * addresses * 3))
    assert first == dict.fromkeys([*known[NAME[1]], *known[OTHER_NAME[1]]], 3)


def test_when_this_machine_has_run_out_no_other_address_is_tried() -> None:
    world = World([LITERAL, (2, "198.51.100.2", 8883)])
    connection = world.accept()
    assert world.send(connection, Event.DIAL_FAILED, errno.EMFILE) == Close(True, True)
    assert world.outcome(connection) is Outcome.NO_RESOURCES


def test_a_name_that_cannot_be_resolved_does_not_stop_the_others() -> None:
    world = World([NAME, OTHER_NAME], {NAME[1]: (), OTHER_NAME[1]: ("203.0.113.3",)})
    for _ in range(3):
        action = world.last[world.accept()]
        assert isinstance(action, Dial)
        assert action.address == ("203.0.113.3", 8883)


def test_an_ipv6_address_is_dialled_as_one() -> None:
    world = World([(0, "2001:db8::1", 8883)])
    action = world.last[world.accept()]
    assert action == Dial(("2001:db8::1", 8883, 0, 0), "", 5.0)


def test_a_route_needs_an_upstream() -> None:
    with pytest.raises(ValueError, match="needs an upstream"):
        Route([], 5.0)
