"""Which addresses are let in: networks that are allowed less networks that are denied, as one sorted row of numbers.

The row has the first address that is let in, then the first one behind that range which is not, and so on. An address
is let in if an odd number of entries is not above it: one binary search, in C, however many networks there were.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]  # first address, first address behind it

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2: an IPv4 address written as IPv6


class AccessList:
    """`allow` and `deny` are networks as text, `10.0.0.0/8` or `2001:db8::/32`, a plain address being one.

    With an empty `allow` everybody is let in whom `deny` does not name. Raises ValueError for what is no network.
    """

    def __init__(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        allowed, denied = _ranges(allow), _ranges(deny)
        self._v4 = _row([(0, 1 << 32)] if not allow else allowed[4], denied[4])
        self._v6 = _row([(0, 1 << 128)] if not allow else allowed[6], denied[6])

    def allows(self, address: bytes) -> bool:
        """Whether an address of 4 or 16 bytes is let in. An IPv4 address that comes as IPv6 counts as what it is."""
        if len(address) == 4:
            return bisect_right(self._v4, int.from_bytes(address)) & 1 == 1
        if address.startswith(_MAPPED):
            return bisect_right(self._v4, int.from_bytes(address[12:])) & 1 == 1
        return bisect_right(self._v6, int.from_bytes(address)) & 1 == 1


def _ranges(networks: Iterable[str]) -> dict[int, list[Range]]:
    """By IP version. A network of IPv4 addresses written as IPv6 is one of IPv4."""
    found: dict[int, list[Range]] = {4: [], 6: []}
    for text in networks:
        network = ipaddress.ip_network(text)
        first, behind = int(network.network_address), int(network.broadcast_address) + 1
        if network.version == 6 and network.prefixlen >= 96 and network.network_address.packed.startswith(_MAPPED):
            offset = int.from_bytes(_MAPPED) << 32
            found[4].append((first - offset, behind - offset))
        else:
            found[network.version].append((first, behind))
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
