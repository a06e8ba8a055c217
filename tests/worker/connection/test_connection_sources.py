"""From which local address a connection dials, and what happens when ports run out or turns are limited."""

from __future__ import annotations

import errno
from collections import Counter

from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import Close, Dial, Event, Wait
from relay.outcome import Outcome
from tests.worker.connection.world import LITERAL, NAME, World

SOURCES = ("192.0.2.1", "192.0.2.2")
V6_SOURCE = "2001:db8:1::1"


def dial_of(world: World) -> Dial:
    action = world.last[world.accept()]
    assert isinstance(action, Dial)
    return action


def test_sources_take_as_many_connections_each() -> None:
    world = World([LITERAL], sources=SOURCES)
    assert Counter(dial_of(world).source for _ in range(20)) == dict.fromkeys(SOURCES, 10)
    assert world.in_use() == 20


def test_a_source_is_of_the_upstream_s_family() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1", "2001:db8::1")}, sources=("192.0.2.1", V6_SOURCE))
    found = {dial.address[0]: dial.source for dial in (dial_of(world) for _ in range(8))}
    assert found == {"203.0.113.1": "192.0.2.1", "2001:db8::1": V6_SOURCE}


def test_without_a_source_of_the_family_the_kernel_chooses() -> None:
    world = World([(0, "2001:db8::1", 8883)], sources=SOURCES)
    assert dial_of(world).source == ""


def test_close_to_the_last_port_it_is_refused_and_let_in_again_later() -> None:
    world = World([LITERAL], plan=LimitPlan(1, 1000, 1000, (0,)), sources=SOURCES, ports=100)
    connections = []
    while True:
        connection = world.accept()
        if not isinstance(world.last[connection], Dial):
            break
        connections.append(connection)
    assert len(connections) == 2 * 98
    assert world.outcome(connection) is Outcome.NO_SOURCE_PORT
    world.send(connections[5], Event.CONNECTED)
    world.send(connections[5], Event.FINISHED)
    assert isinstance(world.last[world.accept()], Dial)


def test_each_upstream_address_has_ports_of_its_own() -> None:
    world = World([NAME], {NAME[1]: ("203.0.113.1", "203.0.113.2")}, ports=10)
    assert Counter(dial_of(world).address[0] for _ in range(18)) == {"203.0.113.1": 9, "203.0.113.2": 9}
    assert world.last[world.accept()] == Close(True, True)


def test_when_the_kernel_has_no_port_another_source_is_tried_and_then_it_is_left_alone() -> None:
    world = World([LITERAL], sources=SOURCES)
    connection = world.accept()
    first = world.last[connection]
    second = world.send(connection, Event.DIAL_FAILED, errno.EADDRNOTAVAIL)
    assert isinstance(first, Dial)
    assert isinstance(second, Dial)
    assert {first.source, second.source} == set(SOURCES)
    assert world.send(connection, Event.DIAL_FAILED, errno.EADDRNOTAVAIL) == Close(True, True)
    assert world.outcome(connection) is Outcome.NO_SOURCE_PORT
    assert world.outcome(world.accept()) is Outcome.NO_SOURCE_PORT, "the next one does not even try"
    assert world.in_use() == 0
    for _ in range(2000):
        world.frontend.clock()  # two seconds
    assert isinstance(world.last[world.accept()], Dial)


def test_another_worker_s_ports_count_as_well() -> None:
    world = World([LITERAL], ports=100)
    other = [0] * world.layout.size
    other[world.layout.ports(0, 0)] = 97
    world.sources._others.append(other)
    assert isinstance(world.last[world.accept()], Dial)
    assert world.outcome(world.accept()) is Outcome.NO_SOURCE_PORT


def test_turns_come_in_order_and_who_has_gone_is_passed_over() -> None:
    world = World([LITERAL], rates=RatePlan(dial=Rate(10.0, 2.0), queue=3, queue_seconds=9.0))
    assert isinstance(dial_of(world), Dial)
    assert isinstance(dial_of(world), Dial)
    waiting = [world.accept() for _ in range(3)]
    assert [world.last[one] for one in waiting] == [Wait()] * 3
    assert world.outcome(world.accept()) is Outcome.DIAL_QUEUE_FULL
    assert world.send(waiting[0], Event.CLIENT_RESET) == Close(False, True)
    assert world.outcome(waiting[0]) is Outcome.CLIENT_ABORT
    world.turn()
    assert isinstance(world.last[waiting[1]], Dial)
    assert world.last[waiting[2]] == Wait()


def test_a_second_address_needs_a_turn_of_its_own() -> None:
    world = World([LITERAL, (2, "198.51.100.2", 8883)], rates=RatePlan(dial=Rate(1.0, 1.0), queue=3, queue_seconds=9.0))
    connection = world.accept()
    assert world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED) == Wait()
    world.turn()
    assert isinstance(world.last[connection], Dial)
