"""Customers in a worker: whose a connection is, who is let in, what is counted, and reloads under connections."""

from __future__ import annotations

import pytest

from relay.core import proxy_header
from relay.core.customers import NOBODY, Customer
from relay.core.rates import Rate
from relay.engines.contract import Close, Event, Pump, Refuse
from relay.outcome import Outcome
from relay.worker.connection.transitions import Connection
from tests.core.hellos import hello, records, server_name
from tests.worker.connection.customer_world import CustomerWorld
from tests.worker.connection.world import CLIENT

SERVED = ("203.0.113.200", 8883)


def header(source: str, link_id: int | None = None) -> bytes:
    """A PROXY header, version 2, with Azure's TLV if there is a link id (PP2_TYPE_AZURE 0xEE, subtype 1)."""
    plain = proxy_header.build(2, (source, 4711), SERVED)
    if link_id is None:
        return plain
    value = b"\x01" + link_id.to_bytes(4, "little")
    tlv = b"\xee" + len(value).to_bytes(2) + value
    return plain[:14] + (int.from_bytes(plain[14:16]) + len(tlv)).to_bytes(2) + plain[16:] + tlv


LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a") + b"\x20\x00\x00\x00"


def pumping(world: CustomerWorld) -> Connection:
    connection = world.accept()
    assert isinstance(world.send(connection, Event.CONNECTED, None), Pump)
    return connection


def test_a_customers_connection_is_the_customers_to_its_end() -> None:
    world = CustomerWorld([Customer(3, "contoso", ["192.0.2.0/24"])])
    connection = pumping(world)
    assert (connection.customer, connection.customer_name) == (3, "contoso")
    assert world.customer_rows[3] == 1
    connection.moved(100, 50)
    assert world.totals(3) == {"active": 1, "accepted": 1, "up": 100, "down": 50}
    connection.end(Event.FINISHED, None, 130, 70)
    assert world.totals(3) == {"accepted": 1, "up": 130, "down": 70}
    assert not any(world.customer_rows)
    assert connection.customer_name == "contoso", "for the access log, whose line is written at the end"


@pytest.mark.parametrize(
    ("networks", "listeners", "allow", "deny", "outcome"),
    [
        (["192.0.2.0/24"], None, [], [], None),
        (["192.0.2.0/24"], None, ["198.51.100.0/24"], [], None),  # a customer need not be in access.allow
        (["192.0.2.0/24"], None, [], ["192.0.2.1"], Outcome.REFUSED_ACCESS),  # deny wins
        (["192.0.2.0/24"], [1], [], [], Outcome.REFUSED_ACCESS),
        (["192.0.2.0/24"], [0, 1], [], [], None),
        (["198.51.100.0/24"], None, [], [], Outcome.REFUSED_ACCESS),  # nobody else, with an empty access.allow
        (["198.51.100.0/24"], None, ["192.0.2.1"], [], None),
        (["198.51.100.0/24"], None, ["192.0.2.0/25"], ["192.0.2.1"], Outcome.REFUSED_ACCESS),
    ],
)
def test_who_is_let_in(
    networks: list[str], listeners: list[int] | None, allow: list[str], deny: list[str], outcome: Outcome | None
) -> None:
    world = CustomerWorld([Customer(0, "contoso", networks, listeners=listeners)], allow=allow, deny=deny)
    connection = world.accept()
    assert connection.outcome is outcome
    if outcome is not None:
        assert world.last[connection] == Refuse()
        assert world.limits.held() == 0
    if networks == ["192.0.2.0/24"]:
        counted = {"active": 1} if outcome is None else {outcome.label: 1}
        assert world.totals(0) == {"accepted": 1, **counted}
    else:
        assert connection.customer == NOBODY
        assert world.totals(0) == {}


def test_a_customer_who_may_not_use_the_listener_is_not_tried_as_a_wider_one() -> None:
    narrow = Customer(1, "narrow", ["192.0.2.1"], listeners=[1])
    world = CustomerWorld([Customer(0, "wide", ["192.0.2.0/24"]), narrow], allow=["0.0.0.0/0"])
    assert world.accept().outcome is Outcome.REFUSED_ACCESS
    assert (world.totals(0), world.totals(1)) == ({}, {"accepted": 1, "refused_access": 1})


def test_limit_and_rate_are_each_customers_own() -> None:
    world = CustomerWorld(
        [
            Customer(0, "contoso", ["192.0.2.1"], max_connections=2),
            Customer(1, "fabrikam", ["192.0.2.2"], rate=Rate(1.0, 2.0)),
        ],
        proxy="require",
    )

    def one(source: str) -> Outcome | None:
        connection = world.accept()
        world.send(connection, Event.PREREAD, header(source))
        return connection.outcome

    assert [one("192.0.2.1") for _ in range(3)] == [None, None, Outcome.REFUSED_CUSTOMER]
    assert [one("192.0.2.2") for _ in range(3)] == [None, None, Outcome.REFUSED_CUSTOMER_RATE]
    size = len(header("192.0.2.1"))
    assert world.totals(0) == {"active": 2, "accepted": 3, "up": 3 * size, "refused_customer": 1}
    assert world.totals(1) == {"active": 2, "accepted": 3, "up": 3 * size, "refused_customer_rate": 1}
    assert world.limits.held() == 4
    assert world.customer_rows[:2] == [2, 2]


@pytest.mark.parametrize(
    ("sent", "customer"),
    [
        (header("192.0.2.1"), 0),  # the proxy's own address is CLIENT's, which is nobody's
        (header("198.51.100.9"), None),
        (header("192.0.2.1", link_id=7), 1),  # a link id decides alone
        (header("192.0.2.1", link_id=8), None),  # an unknown one is no customer's
        (LOCAL, 2),
        (b"PROXY UNKNOWN\r\n", 2),
    ],
)
def test_behind_a_proxy(sent: bytes, customer: int | None) -> None:
    world = CustomerWorld(
        [
            Customer(0, "by-network", ["192.0.2.1"]),
            Customer(1, "by-link", ["10.0.0.0/8"], [7]),
            Customer(2, "the-proxy", ["203.0.113.5"]),
        ],
        proxy="require",
    )
    connection = world.accept()
    connection.client = ("203.0.113.5", 1)  # from where the proxy connects
    assert connection.customer == NOBODY, "not known before the header"
    assert world.limits.held() == 1
    world.send(connection, Event.PREREAD, sent)
    if customer is None:
        assert connection.outcome is Outcome.REFUSED_ACCESS
        assert world.limits.held() == 0
        assert not any(world.customer_rows)
    else:
        assert connection.customer == customer
        assert world.customer_rows[customer] == world.limits.held() == 1


def test_a_connection_that_is_refused_later_counts_as_the_customers_refusal() -> None:
    world = CustomerWorld([Customer(0, "contoso", ["192.0.2.0/24"])], sni=("hub.example",))
    connection = world.accept()
    sent = records(hello(server_name(b"other.example")))
    assert world.send(connection, Event.PREREAD, sent) == Close(True, True)
    assert world.totals(0) == {"accepted": 1, "up": len(sent), "refused_sni": 1}
    assert not any(world.customer_rows)


def test_established_connections_keep_their_customer_over_reloads() -> None:
    world = CustomerWorld([Customer(0, "contoso", ["192.0.2.0/24"])])
    connection = pumping(world)
    # Removed: its name stays in the table as long as it has connections; its network is another's now.
    world.reload([Customer(0, "contoso", listeners=()), Customer(1, "fabrikam", ["192.0.2.0/24"], max_connections=1)])
    other = pumping(world)
    assert other.customer_name == "fabrikam"
    assert world.accept().outcome is Outcome.REFUSED_CUSTOMER
    connection.moved(5, 6)
    connection.end(Event.FINISHED, None, 5, 6)
    assert connection.customer_name == "contoso"
    assert world.totals(0) == {"accepted": 1, "up": 5, "down": 6}
    assert world.totals(1) == {"active": 1, "accepted": 2, "refused_customer": 1}
    assert world.customer_rows[:2] == [0, 1]


def test_a_lowered_limit_cuts_nobody() -> None:
    world = CustomerWorld([Customer(0, "contoso", ["192.0.2.0/24"])])
    connections = [pumping(world) for _ in range(3)]
    world.reload([Customer(0, "contoso", ["192.0.2.0/24"], max_connections=2)])
    assert world.accept().outcome is Outcome.REFUSED_CUSTOMER
    for connection in connections[:2]:
        assert connection.outcome is None
        connection.end(Event.FINISHED, None, 0, 0)
    assert world.accept().outcome is None
    assert world.accept().outcome is Outcome.REFUSED_CUSTOMER


def test_a_connection_that_waits_for_its_header_over_a_reload_is_the_present_customers() -> None:
    """Also, leases of before do not keep the table of before: the limits that they belong to have let go of it."""
    world = CustomerWorld([Customer(0, "contoso", ["192.0.2.1"])], proxy="require")
    before = world.limits
    connection = world.accept()
    world.reload([Customer(1, "fabrikam", ["192.0.2.1"])])
    assert len(before._customer_limits) == 0  # type: ignore[arg-type]
    world.send(connection, Event.PREREAD, header(CLIENT[0]))
    assert connection.customer_name == "fabrikam"
    connection.end(Event.STOP, None, 0, 0)
    assert not any(world.customer_rows)
