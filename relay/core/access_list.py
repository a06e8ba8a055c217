"""Which addresses are admitted: the allowed networks minus the denied ones, as one sorted list of range boundaries.

The list alternates between the first address of an admitted range and the first address after it. `bisect_right`
counts the boundaries ≤ the address; odd means inside an admitted range. So a look-up is one binary search, in C,
however many networks there are.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Range = tuple[int, int]  # first address, first address after the range

MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2: an IPv4 address written as IPv6
_PREFIX = 8 * len(MAPPED)
_FIRST = int.from_bytes(MAPPED) << 32


class AccessList:
    """A list of allowed and denied networks as text, `10.0.0.0/8` or `2001:db8::/32`; a plain address is a network.

    With an empty `allow` every address is admitted that `deny` does not contain. An IPv4-mapped address such as
    ::ffff:10.0.0.1 matches both the IPv4 networks that contain 10.0.0.1 and the IPv6 networks that contain the mapped
    form. So `::/0` matches the clients of an IPv6 socket or IPv6 PROXY header, mapped ones included, and no client of
    an IPv4 socket.
    Raises ValueError for text that is no network.
    """

    def __init__(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        allowed, denied = _ranges(allow), _ranges(deny)
        self._v4 = _boundaries([(0, 1 << 32)] if not allow else allowed.v4, denied.v4)
        self._v6 = _boundaries([(0, 1 << 128)] if not allow else allowed.v6, denied.v6)
        # For IPv4-mapped addresses, by their last 32 bits.
        mapped = [(0, 1 << 32)] if not allow else allowed.v4 + allowed.mapped
        self._mapped = _boundaries(mapped, denied.v4 + denied.mapped)

    def allows(self, address: bytes) -> bool:
        """Whether an address is admitted: 4 bytes, or 16 for IPv6, IPv4-mapped ones not converted."""
        if len(address) == 4:
            return bisect_right(self._v4, int.from_bytes(address)) & 1 == 1
        if address.startswith(MAPPED):
            return bisect_right(self._mapped, int.from_bytes(address[12:])) & 1 == 1
        return bisect_right(self._v6, int.from_bytes(address)) & 1 == 1


class _Ranges(NamedTuple):
    """The address ranges of a list of networks."""

    v4: list[Range]
    v6: list[Range]
    mapped: list[Range]  # the IPv4 addresses whose mapped form is in one of `v6`: all of them, or none


def _ranges(networks: Iterable[str]) -> _Ranges:
    """The ranges of `networks`; a network within ::ffff:0:0/96 counts as an IPv4 network."""
    found = _Ranges([], [], [])
    for text in networks:
        network = ipaddress.ip_network(text)
        first, end = int(network.network_address), int(network.broadcast_address) + 1
        if network.version == 4:
            found.v4.append((first, end))
        elif network.prefixlen >= _PREFIX and first >> 32 == _FIRST >> 32:
            found.v4.append((first - _FIRST, end - _FIRST))
        else:
            found.v6.append((first, end))
            if first <= _FIRST < end:  # contains all of ::ffff:0:0/96, since networks are nested or disjoint
                found.mapped.append((0, 1 << 32))
    return found


def _boundaries(allowed: Iterable[Range], denied: Iterable[Range]) -> list[int]:
    """The boundaries of the ranges that are in `allowed` and not in `denied`."""
    # How many allowed and how many denied ranges begin (+1) or end (-1) at each boundary. An address is admitted where
    # at least one allowed range and no denied range is open.
    changes: dict[int, list[int]] = {}
    for kind, ranges in enumerate((allowed, denied)):
        for first, end in ranges:
            changes.setdefault(first, [0, 0])[kind] += 1
            changes.setdefault(end, [0, 0])[kind] -= 1
    boundaries: list[int] = []
    depth = [0, 0]
    for boundary in sorted(changes):
        for kind in (0, 1):
            depth[kind] += changes[boundary][kind]
        if (depth[0] > 0 and depth[1] == 0) != (len(boundaries) % 2 == 1):
            boundaries.append(boundary)
    return boundaries
