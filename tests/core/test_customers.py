"""The customers' table beside a plain look at every network, and what a table of thousands costs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.core.customers import NOBODY, SLOTS, UNLIMITED, Customer, CustomerTable, compile_table, parse
from relay.core.rates import Rate
from tests.core.test_access_list import ADDRESSES, EDGES, MAPPED, Address, Network, mapped, networks

Checked = Callable[[Callable[..., None]], Callable[..., None]]
EXAMPLES: Checked = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "0")) or 200)


def normal(address: Address) -> Address:
    """An IPv4-mapped address is the IPv4 address in it."""
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def normal_network(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        address = network.network_address.ipv4_mapped
        assert address is not None
        return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


def plainly(owners: dict[Network, int], address: Address) -> int:
    """The owner of the longest network that has the address, by a walk over all of them."""
    address = normal(address)
    having = [network for network in owners if network.version == address.version and address in network]
    return owners[max(having, key=lambda network: network.prefixlen)] if having else NOBODY


OWNED = st.dictionaries(networks().map(normal_network), st.integers(0, 5), max_size=12)


@EXAMPLES
@given(OWNED, st.lists(ADDRESSES, max_size=20))
@example({ipaddress.ip_network("0.0.0.0/0"): 1, ipaddress.ip_network("::/0"): 2}, EDGES)
@example({ipaddress.ip_network("0.0.0.0/1"): 1, ipaddress.ip_network("0.0.0.0/0"): 2}, EDGES)
@example({ipaddress.ip_network("10.0.0.0/8"): 0, ipaddress.ip_network("10.0.0.0/9"): 1}, EDGES)
@example({ipaddress.ip_network("2001:db8::/64"): 0, ipaddress.ip_network("2001:db8::ffff:0:0/96"): 1}, [])
def test_the_most_specific_network_has_the_address(owners: dict[Network, int], addresses: list[Address]) -> None:
    by_slot: dict[int, list[str]] = {}
    for network, slot in owners.items():
        by_slot.setdefault(slot, []).append(str(network))
    table = CustomerTable(compile_table([Customer(s, f"c{s}", texts) for s, texts in by_slot.items()], 3))
    edges = [edge for network in owners for edge in (network.network_address, network.broadcast_address)]
    beside = [edge + step for edge in edges for step in (-1, 1) if 0 <= int(edge) + step < 1 << edge.max_prefixlen]
    for address in [*addresses, *edges, *beside]:
        expected = plainly(owners, address)
        assert table.of_address(address.packed) == expected, address
        if isinstance(address, ipaddress.IPv4Address):
            assert table.of_address(mapped(address).packed) == expected, "the form in which it came does not matter"


@EXAMPLES
@given(networks())
def test_a_networks_text_is_read_as_ipaddress_reads_it(network: Network) -> None:
    as_it_counts = normal_network(network)
    first = int(as_it_counts.network_address)
    assert parse(str(network)) == (as_it_counts.version, first, as_it_counts.prefixlen)


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.256", "1.2.3", "::1/64", "name", "1.2.3.4/"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@EXAMPLES
@given(
    st.dictionaries(st.one_of(st.integers(0, 9), st.integers(0, 0xFFFFFFFF)), st.integers(0, 5)),
    st.integers(0, 0xFFFFFFFF),
)
def test_link_ids(owners: dict[int, int], other: int) -> None:
    customers = [
        Customer(slot, f"c{slot}", (), [link for link in owners if owners[link] == slot])
        for slot in set(owners.values())
    ]
    table = CustomerTable(compile_table(customers, 1))
    for link in [*owners, other, 0, 0xFFFFFFFF]:
        assert table.of_link(link) == owners.get(link, NOBODY)


@EXAMPLES
@given(
    st.integers(1, 200).flatmap(
        lambda listeners: st.tuples(
            st.just(listeners),
            st.dictionaries(
                st.integers(0, 40),
                st.tuples(
                    st.text("abc-._09", min_size=1, max_size=64),
                    st.integers(0, 10_000_000),
                    st.builds(Rate, st.one_of(st.just(0.0), st.floats(0.001, 10_000_000)), st.floats(1, 10_000_000)),
                    st.none() | st.sets(st.integers(0, listeners - 1)),
                ),
            ),
        )
    )
)
def test_what_a_customer_is_allowed(
    case: tuple[int, dict[int, tuple[str, int, Rate, set[int] | None]]],
) -> None:
    listeners, wanted = case
    customers = [
        Customer(slot, name, max_connections=most, rate=rate, listeners=None if of is None else sorted(of))
        for slot, (name, most, rate, of) in wanted.items()
    ]
    table = CustomerTable(compile_table(customers, listeners))
    assert table.slots == max(wanted, default=-1) + 1
    for slot in range(table.slots):
        name, most, rate, of = wanted.get(slot, ("", 0, UNLIMITED, set()))
        assert (table.name(slot), table.limits[slot]) == (name, most)
        expected = (rate.interval, rate.tolerance) if rate.per_second else (0, 0)
        assert (table.intervals[slot], table.tolerances[slot]) == expected
        for listener in range(listeners):
            assert table.may_use(slot, listener) is (of is None or listener in of)
    assert table.name(table.slots) == table.name(NOBODY) == ""


def test_no_customers_is_a_table_too() -> None:
    table = CustomerTable(compile_table([], 3))
    assert [table.of_address(edge.packed) for edge in EDGES] == [NOBODY] * len(EDGES)
    assert table.of_link(7) == NOBODY
    assert table.slots == 0


@pytest.mark.parametrize("slot", [-1, SLOTS, NOBODY])
def test_a_slot_that_does_not_exist_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        compile_table([Customer(slot, "c")], 1)


def test_twenty_thousand_networks_are_less_than_a_megabyte() -> None:
    customers = [
        Customer(
            slot,
            f"customer-{slot}",
            [f"10.{slot >> 8}.{slot & 255}.{part}/32" for part in (1, 3)]
            + [f"2001:db8:{slot:x}:{part}::/64" for part in (1, 3)],
            [slot],
        )
        for slot in range(5000)
    ]
    content = compile_table(customers, 64)
    assert len(content) < 1 << 20
    table = CustomerTable(content)
    assert table.of_address(ipaddress.ip_address("10.19.135.3").packed) == 4999
    assert table.of_address(ipaddress.ip_address("2001:db8:1387:3::7").packed) == 4999
    assert table.name(4999) == "customer-4999"
