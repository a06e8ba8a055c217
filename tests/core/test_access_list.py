"""The access list beside a plain look at every network, one after the other."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.access_list import AccessList
from relay.worker.connection.admission import Admission, Denied
from tests.worker.connection.world import World

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Few different addresses, so that networks meet, touch and lie in one another.
V4 = st.builds(
    lambda low, high: ipaddress.IPv4Address(high << 24 | low), st.integers(0, 40), st.sampled_from([0, 10, 255])
)
V6 = st.builds(
    lambda low, high: ipaddress.IPv6Address(high | low),
    st.integers(0, 40),
    st.sampled_from([0, 0x2001 << 112, 0xFFFF << 32, 0xFFFF << 32 | 10 << 24, 0xFFFE << 32]),
)
ADDRESSES = st.one_of(V4, V6, st.ip_addresses())
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
EDGES = [ipaddress.ip_address(text) for text in ("0.0.0.0", "255.255.255.255", "::", "ffff" + ":ffff" * 7)]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(ADDRESSES)
    bits = address.max_prefixlen
    length = draw(st.one_of(st.integers(bits - 6, bits), st.integers(0, bits)))
    return ipaddress.ip_network((address, length), strict=False)


def spellings(address: Address) -> list[Address]:
    """What an address that came so is named by: IPv4-mapped ones by both of their forms (RFC 4291 section 2.5.5.2)."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return [address] if mapped is None else [address, mapped]


def names(network: Network, address: Address) -> bool:
    """Whether a network names an address, one that is IPv4's and written as IPv6 being IPv4's too."""
    if any(one in network for one in spellings(address)):
        return True
    ipv4s = isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED)
    return ipv4s and isinstance(address, ipaddress.IPv4Address) and mapped(address) in network


def mapped(address: ipaddress.IPv4Address) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(MAPPED.network_address.packed[:12] + address.packed)


def plainly(allow: list[Network], deny: list[Network], address: Address) -> bool:
    return (not allow or any(names(network, address) for network in allow)) and not any(
        names(network, address) for network in deny
    )


@given(st.lists(networks(), max_size=6), st.lists(networks(), max_size=6), st.lists(ADDRESSES, min_size=1, max_size=20))
@example([], [], EDGES)
@example([], [ipaddress.ip_network("::ffff:0:0/122")], [ipaddress.ip_address("0.0.0.32")])
@example([ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")], [], EDGES)
@example([], [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")], EDGES)
@example([], [ipaddress.ip_network("::/0")], [ipaddress.ip_address("0.0.0.32")])
@example([ipaddress.ip_network("::/80")], [ipaddress.ip_network("10.0.0.0/8")], [ipaddress.ip_address("10.0.0.1")])
def test_who_is_let_in(allow: list[Network], deny: list[Network], addresses: list[Address]) -> None:
    found = AccessList([str(network) for network in allow], [str(network) for network in deny])
    edges = [edge for network in allow + deny for edge in (network.network_address, network.broadcast_address)]
    beside = [edge + step for edge in edges for step in (-1, 1) if 0 <= int(edge) + step < 1 << edge.max_prefixlen]
    for address in [*addresses, *edges, *beside]:
        forms = spellings(address)
        if isinstance(address, ipaddress.IPv4Address):
            forms.append(mapped(address))
        for form in forms:
            assert found.allows(form.packed) == plainly(allow, deny, form), form


@pytest.mark.parametrize("length", [*range(0, 97, 8), 81, 95])
def test_a_network_of_ipv6_names_the_mapped_addresses_in_it_and_no_others(length: int) -> None:
    around = str(ipaddress.ip_network((MAPPED.network_address, length), strict=False))
    beside = str(ipaddress.ip_network((int(MAPPED.network_address) ^ 1 << 32, 96)))
    client = ipaddress.IPv4Address("192.0.2.1")
    whole = length == 96
    for network, named, also_as_ipv4 in ((around, True, whole), (beside, False, False)):
        allow, deny = AccessList([network], []), AccessList([], [network])
        assert (allow.allows(mapped(client).packed), deny.allows(mapped(client).packed)) == (named, not named)
        assert (allow.allows(client.packed), deny.allows(client.packed)) == (also_as_ipv4, not also_as_ipv4)


def test_the_form_in_which_a_client_came_is_what_is_asked_for() -> None:
    """What the admission step makes of the address that accept(2), or a PROXY header, gave."""
    for deny, served in (("::/0", False), ("::/80", False), ("192.0.2.0/24", False), ("2001:db8::/32", True)):
        admission = admission_with(AccessList([], [deny]))
        result = admission.admit(0, ("::ffff:192.0.2.1", 50000, 0, 0))
        assert (result is not Denied.ACCESS) is served, deny
    assert admission_with(AccessList([], ["::/0"])).admit(0, ("192.0.2.1", 50000)) is not Denied.ACCESS


def admission_with(access: AccessList) -> Admission:
    return Admission(World([(0, "192.0.2.9", 8883)]).limits, None, access)


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
