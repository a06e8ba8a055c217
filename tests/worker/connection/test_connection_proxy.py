"""A connection that comes behind a proxy, or goes to one: whose it is, and what the upstream is told."""

from __future__ import annotations

import pytest

from relay.address import Address
from relay.core import proxy_header
from relay.core.access_list import AccessList
from relay.core.limit_table import LimitPlan
from relay.engines.contract import Close, Dial, Event, Preread, Pump
from relay.outcome import Outcome
from relay.worker.connection.admission import Admission, SourceHash
from tests.core.hellos import hello, records, server_name
from tests.worker.connection.world import CLIENT, LITERAL, SERVED, World

BEHIND: Address = ("203.0.113.7", 4711)
V2 = proxy_header.build(2, BEHIND, SERVED)
V1 = proxy_header.build(1, BEHIND, SERVED)
LOCAL = proxy_header.build(2, None, None)
HELLO = records(hello(server_name(b"hub.example")))


@pytest.mark.parametrize("header", [V1, V2])
def test_the_client_of_the_header_is_the_client_and_what_follows_is_passed_on(header: bytes) -> None:
    world = World([LITERAL], proxy="require")
    connection = world.accept()
    for end in (1, 5, len(header) - 1):
        assert isinstance(world.send(connection, Event.PREREAD, header[:end]), Preread)
    assert isinstance(world.send(connection, Event.PREREAD, header + b"data"), Dial)
    assert connection.client == BEHIND
    assert world.send(connection, Event.CONNECTED) == Pump(b"data")


def test_header_and_hello_in_pieces() -> None:
    world = World([LITERAL], sni=("hub.example",), proxy="accept")
    connection = world.accept()
    whole = V2 + HELLO
    for end in range(1, len(whole)):
        assert isinstance(world.send(connection, Event.PREREAD, whole[:end]), Preread)
    assert isinstance(world.send(connection, Event.PREREAD, whole), Dial)
    assert world.send(connection, Event.CONNECTED) == Pump(HELLO)
    assert connection.hello is not None
    assert connection.hello.server_name == "hub.example"


def test_without_a_header_it_is_let_in_where_one_is_accepted_and_refused_where_it_is_required() -> None:
    world = World([LITERAL], proxy="accept")
    connection = world.accept()
    assert isinstance(world.send(connection, Event.PREREAD, b"P"), Preread), "it may become one"
    assert isinstance(world.send(connection, Event.PREREAD, b"PI"), Dial)
    assert connection.client == CLIENT
    assert world.send(connection, Event.CONNECTED) == Pump(b"PI")
    world = World([LITERAL], proxy="require")
    connection = world.accept()
    assert world.send(connection, Event.PREREAD, b"PI") == Close(True, True)
    assert world.outcome(connection) is Outcome.REFUSED_PROXY


def test_what_a_proxy_says_of_itself_is_of_its_own_address() -> None:
    world = World([LITERAL], proxy="require", send_proxy=2)
    connection = world.accept()
    assert isinstance(world.send(connection, Event.PREREAD, LOCAL), Dial)
    assert connection.client == CLIENT
    assert world.send(connection, Event.CONNECTED) == Pump(LOCAL)


def test_access_and_limits_are_of_the_client_behind_the_proxy() -> None:
    plan = LimitPlan(1, 9, 9, (0,), per_source=1, source_buckets=64)
    world = World([LITERAL], plan=plan, proxy="require")
    access = AccessList(["203.0.113.0/24"], [])  # the proxy's own address is not in it
    world.frontend.admission = Admission(world.limits, SourceHash(b"key", 32, 64), access)
    first, second, other, stranger = (world.accept() for _ in range(4))
    assert world.limits.held() == 4, "nobody is known yet, and each has a place"
    assert isinstance(world.send(first, Event.PREREAD, V2), Dial)
    assert world.send(second, Event.PREREAD, V2) == Close(True, True)
    assert world.outcome(second) is Outcome.REFUSED_SOURCE
    assert isinstance(world.send(other, Event.PREREAD, proxy_header.build(2, ("203.0.113.8", 1), SERVED)), Dial)
    assert world.send(stranger, Event.PREREAD, LOCAL) == Close(True, True)
    assert world.outcome(stranger) is Outcome.REFUSED_ACCESS
    assert world.limits.held() == 2


def test_who_says_nothing_takes_a_place_and_no_upstream() -> None:
    world = World([LITERAL], plan=LimitPlan(1, 1, 9, (0,)), proxy="require")
    first = world.accept()
    assert world.outcome(world.accept()) is Outcome.REFUSED_INSTANCE
    assert world.send(first, Event.PREREAD_TIMEOUT) == Close(True, True)
    assert world.outcome(first) is Outcome.CLIENT_HELLO_TIMEOUT
    assert world.in_use() == 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_upstream_is_told_of_client_and_address(version: int) -> None:
    world = World([LITERAL], send_proxy=version)
    connection = world.accept()
    action = world.send(connection, Event.CONNECTED)
    assert isinstance(action, Pump)
    header = proxy_header.parse(action.first)
    assert header is not None
    assert (header.version, header.source, header.destination) == (version, CLIENT, SERVED)
    assert header.size == len(action.first)


def test_what_came_with_a_header_goes_on_with_one() -> None:
    world = World([LITERAL], proxy="require", send_proxy=1)
    connection = world.accept()
    destination: Address = ("203.0.113.200", 443)
    world.send(connection, Event.PREREAD, proxy_header.build(2, BEHIND, destination) + b"data")
    assert world.send(connection, Event.CONNECTED) == Pump(proxy_header.build(1, BEHIND, destination) + b"data")
