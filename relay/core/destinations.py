"""Which addresses can never be an upstream: by definition they mean this machine, or many machines.

A DNS sinkhole answers with 0.0.0.0 or ::, which Linux connects to the machine itself: relay would dial its own
listeners, and each connection would open another. Multicast and broadcast addresses take no TCP connection.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3
_BROADCAST = IPv4Address("255.255.255.255")  # RFC 919
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 section 2.1
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291 section 2.5.5.1


def canonical(text: str) -> str:
    """The canonical spelling of an address; an IPv4-mapped one (RFC 4291 section 2.5.5.2) becomes the IPv4 address that
    is used on the wire. Raises ValueError for text that is no address, or has a zone id.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text} has a zone id")
        return str(address.ipv4_mapped or address)
    return str(address)


def why_never(text: str) -> str:
    """Why a literal address is never an upstream, as the end of a sentence; empty if it may be one."""
    address = ip_address(text)
    # First, since Python 3.14 answers for an IPv4-mapped address what its IPv4 address is, and older ones do not.
    if isinstance(address, IPv6Address) and (embedded := _embedded(address)) is not None:
        why = why_never(str(embedded))
        return f"{embedded} in IPv6, {why}" if why else ""
    if address.is_unspecified:
        return "the unspecified address, which is this machine"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, IPv4Address):
        if address in _THIS_NETWORK:
            return "an address of 0.0.0.0/8, which is this machine's network"
        return "the broadcast address" if address == _BROADCAST else ""
    return ""


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address embeds: mapped, compatible, 6to4 (RFC 3056) or NAT64; None without one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):  # :: and ::1 embed no IPv4 address
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None
