"""The access list beside a plain look at every network, one after the other."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.access import AccessList

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Few different addresses, so that networks meet, touch and lie in one another.
V4 = st.builds(
    lambda low, high: ipaddress.IPv4Address(high << 24 | low), st.integers(0, 40), st.sampled_from([0, 10, 255])
)
V6 = st.builds(
    lambda low, high: ipaddress.IPv6Address(high << 112 | low), st.integers(0, 40), st.sampled_from([0, 0x2001])
)
ADDRESSES = st.one_of(V4, V6, st.ip_addresses())
EDGES = [ipaddress.ip_address(text) for text in ("0.0.0.0", "255.255.255.255", "::", "ffff" + ":ffff" * 7)]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(ADDRESSES)
    bits = address.max_prefixlen
    length = draw(st.one_of(st.integers(bits - 6, bits), st.integers(0, bits)))
    return ipaddress.ip_network((address, length), strict=False)


def as_meant(network: Network) -> Network:
    """One of IPv4 addresses written as IPv6 is one of IPv4."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def plainly(allow: list[Network], deny: list[Network], address: Address) -> bool:
    return (not allow or any(address in network for network in allow)) and not any(
        address in network for network in deny
    )


@given(st.lists(networks(), max_size=6), st.lists(networks(), max_size=6), st.lists(ADDRESSES, min_size=1, max_size=20))
@example([], [], EDGES)
@example([], [ipaddress.ip_network("::ffff:0:0/122")], [ipaddress.ip_address("0.0.0.32")])
@example([ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")], [], EDGES)
@example([], [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")], EDGES)
def test_who_is_let_in(allow: list[Network], deny: list[Network], addresses: list[Address]) -> None:
    found = AccessList([str(network) for network in allow], [str(network) for network in deny])
    edges = [edge for network in allow + deny for edge in (network.network_address, network.broadcast_address)]
    beside = [edge + step for edge in edges for step in (-1, 1) if 0 <= int(edge) + step < 1 << edge.max_prefixlen]
    for address in [*addresses, *edges, *beside]:
        if address.version == 6 and address.ipv4_mapped is not None:
            continue
        meant = plainly([*map(as_meant, allow)], [*map(as_meant, deny)], address)
        assert found.allows(address.packed) == meant, address


def test_an_ipv4_address_written_as_ipv6_is_the_same_address() -> None:
    found = AccessList(["10.0.0.0/8", "::ffff:192.0.2.0/120"], ["10.1.0.0/16"])
    for text, expected in (("10.0.0.1", True), ("10.1.0.1", False), ("192.0.2.9", True), ("192.0.3.1", False)):
        address = ipaddress.IPv4Address(text)
        assert found.allows(address.packed) is expected
        assert found.allows(ipaddress.IPv6Address(f"::ffff:{text}").packed) is expected


def test_a_plain_address_is_a_network() -> None:
    found = AccessList(["192.0.2.1", "2001:db8::1"], [])
    assert found.allows(ipaddress.ip_address("192.0.2.1").packed)
    assert found.allows(ipaddress.ip_address("2001:db8::1").packed)
    assert not found.allows(ipaddress.ip_address("192.0.2.2").packed)
    assert not found.allows(ipaddress.ip_address("2001:db8::2").packed)


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "hub.example", "10.0.0.0/8 "])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        AccessList([text], [])
