"""Which address is dialled when: the fit ones with the fewest connections first, and in the end every one."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from relay.engines.contract import Close, Dial, Event, Pump, Wait
from relay.outcome import Outcome
from tests.worker.connection.world import LITERAL, NAME, OTHER_NAME, World


def dialled(world: World) -> list[str]:
    """The addresses that one connection tries until there are no more."""
    connection = world.accept()
    tried: list[str] = []
    while True:
        action = world.last[connection]
        if isinstance(action, Dial):
            tried.append(action.address[0])
            world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
        else:
            assert action == Close(True, True)
            return tried


def first(world: World) -> str:
    """The first address of a connection that is served and ends."""
    connection = world.accept()
    action = world.last[connection]
    assert isinstance(action, Dial)
    world.send(connection, Event.CONNECTED)
    world.send(connection, Event.FINISHED)
    return action.address[0]


def test_all_addresses_of_all_upstreams_are_tried_each_beginning_as_often() -> None:
    addresses = {NAME[1]: ("203.0.113.1", "203.0.113.2", "2001:db8::1"), OTHER_NAME[1]: ("203.0.113.3",)}
    world = World([LITERAL, NAME, OTHER_NAME], addresses)
    expected = sorted([LITERAL[1], *addresses[NAME[1]], *addresses[OTHER_NAME[1]]])
    assert sorted(dialled(world)) == expected
    assert Counter(first(world) for _ in range(20)) == dict.fromkeys(expected, 4)


def test_the_address_with_the_fewest_connections_is_the_first() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2")})
    connections = [world.accept() for _ in range(4)]
    for connection in connections:
        world.send(connection, Event.CONNECTED)
    gone = [one for one in connections if one.target and one.target.key[0] == "203.0.113.2"]
    assert len(gone) == 2
    for connection in gone:
        world.send(connection, Event.FINISHED)
    for _ in gone:
        action = world.last[world.accept()]
        assert isinstance(action, Dial)
        assert action.address[0] == "203.0.113.2"


def test_a_connection_waits_for_the_first_answer_and_not_for_the_second() -> None:
    world = World([NAME, OTHER_NAME])
    first = world.accept()
    assert world.last[first] == Wait()
    world.answer("203.0.113.1")
    assert world.last[first] == Dial(("203.0.113.1", 8883), "", 5.0)
    world.answer("203.0.113.2")
    assert world.last[world.accept()] == Dial(("203.0.113.2", 8883), "", 5.0)


def test_the_failure_of_one_name_is_no_answer_while_another_is_asked_for() -> None:
    world = World([NAME, OTHER_NAME])
    connection = world.accept()
    world.answer()
    assert world.last[connection] == Wait()
    world.answer()
    assert world.outcome(connection) is Outcome.RESOLVE_FAILED


def test_a_changed_answer_is_for_new_connections() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1",)})
    old = world.accept()
    world.send(old, Event.CONNECTED)
    world.upstreams.resolved(NAME[1], ("203.0.113.9",))
    assert world.last[world.accept()] == Dial(("203.0.113.9", 8883), "", 5.0)
    assert world.last[old] == Pump(), "an established one stays where it is"
    world.upstreams.resolved(NAME[1], ("203.0.113.1", "203.0.113.9"))
    assert old.target is not None
    assert old.target.active == 1, "and is still counted when its address comes back"
    world.send(old, Event.FINISHED)
    assert old.target.active == 0


def test_an_address_that_the_checks_found_down_comes_last_and_is_tried_all_the_same() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2")})
    world.upstreams.health(NAME[0], ("203.0.113.1", 8883), up=False)
    assert [dialled(world) for _ in range(3)] == [["203.0.113.2", "203.0.113.1"]] * 3
    world.upstreams.health(NAME[0], ("203.0.113.2", 8883), up=False)
    assert sorted(dialled(world)) == ["203.0.113.1", "203.0.113.2"]
    world.upstreams.health(NAME[0], ("203.0.113.1", 8883), up=True)
    assert [dialled(world)[0] for _ in range(3)] == ["203.0.113.1"] * 3


def test_a_worker_that_is_told_anew_takes_no_address_for_down_that_has_come_up_meanwhile() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2")})
    world.upstreams.health(NAME[0], ("203.0.113.1", 8883), up=False)
    world.upstreams.health(NAME[0], ("203.0.113.3", 8883), up=False)
    world.upstreams.all_up()
    assert {first(world) for _ in range(2)} == {"203.0.113.1", "203.0.113.2"}
    world.upstreams.resolved(NAME[1], ("203.0.113.2", "203.0.113.3"))
    assert {first(world) for _ in range(2)} == {"203.0.113.2", "203.0.113.3"}, "nor one that it has heard of only"


def test_what_was_down_before_its_name_was_resolved_is_down_after_it() -> None:
    world = World([NAME])
    world.upstreams.health(NAME[0], ("203.0.113.1", 8883), up=False)
    world.answer("203.0.113.1", "203.0.113.2")
    assert dialled(world) == ["203.0.113.2", "203.0.113.1"]


def test_who_has_tried_everything_in_vain_says_so_once_a_second() -> None:
    world = World([LITERAL, NAME], {NAME[1]: ("203.0.113.1",)})
    for _ in range(3):
        dialled(world)
    assert world.reported == [[LITERAL[1], NAME[1]]]


def test_the_addresses_of_a_single_name_take_turns() -> None:
    """The most common configuration: one hub, whose name has several addresses."""
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2", "203.0.113.3")})
    assert Counter(first(world) for _ in range(6)) == {"203.0.113.1": 2, "203.0.113.2": 2, "203.0.113.3": 2}


@pytest.mark.parametrize("addresses", [2, 3, 4])
def test_addresses_take_turns_for_each_of_several_upstreams(addresses: int) -> None:
    known = {
        NAME[1]: tuple(f"203.0.113.{n}" for n in range(addresses)),
        OTHER_NAME[1]: tuple(f"192.0.2.{n}" for n in range(addresses)),
    }
    world = World([NAME, OTHER_NAME], known)
    assert Counter(first(world) for _ in range(2 * addresses * 3)) == dict.fromkeys(
        [*known[NAME[1]], *known[OTHER_NAME[1]]], 3
    )


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
    world = World([LITERAL])
    with pytest.raises(ValueError, match="needs an upstream"):
        world.upstreams.route([])
