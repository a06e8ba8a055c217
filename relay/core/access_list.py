"""Which addresses are let in: networks that are allowed less networks that are denied, as one sorted row of numbers.

The row has the first address that is let in, then the first one behind that range which is not, and so on. An address
is let in if an odd number of entries is not above it: one binary search, in C, however many networks there were.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Range = tuple[int, int]  # first address, first address behind it

MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2: an IPv4 address written as IPv6
_PREFIX = 8 * len(MAPPED)
_FIRST = int.from_bytes(MAPPED) << 32


class AccessList:
    """`allow` and `deny` are networks as text, `10.0.0.0/8` or `2001:db8::/32`, a plain address being one.

    With an empty `allow` everybody is let in whom `deny` does not name. An IPv4-mapped address, ::ffff:a.b.c.d, is two
    in one: networks name it as what it is, an IPv4 address, and as how it came, an IPv6 address. So `::/0` names the
    clients of an IPv6 socket and of a PROXY header of IPv6, mapped ones among them, and no client of an IPv4 socket.
    Raises ValueError for what is no network.
    """

    def __init__(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        allowed, denied = _ranges(allow), _ranges(deny)
        self._v4 = _row([(0, 1 << 32)] if not allow else allowed.v4, denied.v4)
        self._v6 = _row([(0, 1 << 128)] if not allow else allowed.v6, denied.v6)
        # By the IPv4 address that is in it.
        self._mapped = _row([(0, 1 << 32)] if not allow else allowed.v4 + allowed.around, denied.v4 + denied.around)

    def allows(self, address: bytes) -> bool:
        """Whether an address of 4 or 16 bytes is let in, in the form that it came in."""
        if len(address) == 4:
            return bisect_right(self._v4, int.from_bytes(address)) & 1 == 1
        if address.startswith(MAPPED):
            return bisect_right(self._mapped, int.from_bytes(address[12:])) & 1 == 1
        return bisect_right(self._v6, int.from_bytes(address)) & 1 == 1


class _Ranges(NamedTuple):
    """What networks name."""

    v4: list[Range]
    v6: list[Range]  # what is mapped left aside
    around: list[Range]  # the IPv4 addresses whose mapped form lies in networks of IPv6 addresses: all, or none


def _ranges(networks: Iterable[str]) -> _Ranges:
    """A network of nothing but IPv4 addresses written as IPv6 is one of IPv4."""
    found = _Ranges([], [], [])
    for text in networks:
        network = ipaddress.ip_network(text)
        first, behind = int(network.network_address), int(network.broadcast_address) + 1
        if network.version == 4:
            found.v4.append((first, behind))
        elif network.prefixlen >= _PREFIX and first >> 32 == _FIRST >> 32:
            found.v4.append((first - _FIRST, behind - _FIRST))
        else:
            found.v6.append((first, behind))
            if first <= _FIRST < behind:  # and so all of them: networks lie in one another or apart
                found.around.append((0, 1 << 32))
    return found


def _row(allowed: Iterable[Range], denied: Iterable[Range]) -> list[int]:
    """The boundaries of what is in `allowed` and not in `denied`."""
    # Depth of either kind at each boundary; in it is where the first is above 0 and the second is not.
    steps: dict[int, list[int]] = {}
    for kind, ranges in enumerate((allowed, denied)):
        for first, behind in ranges:
            steps.setdefault(first, [0, 0])[kind] += 1
            steps.setdefault(behind, [0, 0])[kind] -= 1
    row: list[int] = []
    depth = [0, 0]
    for boundary in sorted(steps):
        for kind in (0, 1):
            depth[kind] += steps[boundary][kind]
        if (depth[0] > 0 and depth[1] == 0) != (len(row) % 2 == 1):
            row.append(boundary)
    return row
