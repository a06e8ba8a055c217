"""Which addresses can never be an upstream, in all their spellings."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.destinations import canonical, why_never


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "the unspecified address, which is this machine"),
        ("::", "the unspecified address, which is this machine"),
        ("0.1.2.3", "an address of 0.0.0.0/8, which is this machine's network"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("::ffff:0.0.0.0", "0.0.0.0 in IPv6, the unspecified address, which is this machine"),
        ("::ffff:224.0.0.1", "224.0.0.1 in IPv6, a multicast address"),
        ("2002:0:0::1", "0.0.0.0 in IPv6, the unspecified address, which is this machine"),
        ("2002:e000:1::", "224.0.0.1 in IPv6, a multicast address"),
        ("64:ff9b::255.255.255.255", "255.255.255.255 in IPv6, the broadcast address"),
        ("::224.0.0.1", "224.0.0.1 in IPv6, a multicast address"),
    ],
)
def test_never(address: str, why: str) -> None:
    assert why_never(address) == why


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.0.0.2", "10.0.0.4", "169.254.169.254", "::1", "fe80::1", "fd00::1", "64:ff9b::10.0.0.4",
     "2002:a00:4::1", "1.0.0.0", "223.255.255.255", "240.0.0.1", "255.255.255.254"],
)  # fmt: skip
def test_perhaps(address: str) -> None:
    assert why_never(address) == ""


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_is_never_what_itself_is_never(address: IPv4Address) -> None:
    never = bool(why_never(str(address)))
    number = int(address)
    for spelling in (
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | 1),
        IPv6Address((0x64FF9B << 96) | number),
    ):
        assert bool(why_never(str(spelling))) is never
    assert canonical(f"::ffff:{address}") == str(address)


@given(st.ip_addresses())
def test_any_address_has_one_spelling(address: IPv4Address | IPv6Address) -> None:
    text = canonical(str(address))
    assert canonical(text) == text
    assert bool(why_never(text)) is bool(why_never(str(address)))
    assert ip_address(text) == (getattr(address, "ipv4_mapped", None) or address)


def test_a_zone_id_is_refused() -> None:
    with pytest.raises(ValueError, match="zone id"):
        canonical("fe80::1%eth0")
