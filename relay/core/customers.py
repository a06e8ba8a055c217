"""Which customer an address or a Private Link connection belongs to, and what that customer is allowed: one block of
bytes that every worker maps read-only.

`compile_table` turns the customers' networks, which may be nested, into disjoint ranges: sorted first addresses with
the owner of each range beside them. So a look-up is one binary search, in C, straight over the mapped bytes, however
many networks there are, and a worker has no object for a network or a customer. IPv6 addresses stand in two columns of
64 bits, which takes three such searches. Limits, rates and names are columns by the customer's slot (`customer_slots`).

An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is an IPv4 address here, as a client and as a network. A wider
IPv6 network such as ::/0 therefore owns no IPv4 client.
"""

from __future__ import annotations

import ipaddress
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from relay.core.access_list import MAPPED
from relay.core.rates import Rate

SLOTS = 16_384  # customers at once, those included who were removed and still have connections
NOBODY = 0xFFFF  # no customer; a slot has 16 bits

UNLIMITED = Rate(0.0, 1.0)

Network = tuple[int, int, int]  # first address, first address after it, slot

_MAPPED_BITS = 8 * len(MAPPED)
_MAPPED_FIRST = int.from_bytes(MAPPED) << 32
_LOW = (1 << 64) - 1
_HEADER = 6  # cells of 64 bits


@dataclass(frozen=True, slots=True)
class Customer:
    """One customer as the tables have it.

    `networks` are texts like `10.0.0.0/8`, `2001:db8::/32` or one address. `max_connections` and `rate.per_second` are
    0 for no limit. `listeners` are the numbers of the listeners that the customer may use; None: all.
    """

    slot: int
    name: str
    networks: Sequence[str] = ()
    link_ids: Sequence[int] = ()
    max_connections: int = 0
    rate: Rate = UNLIMITED
    listeners: Sequence[int] | None = None


def compile_table(customers: Iterable[Customer], listeners: int) -> bytes:
    """The table of these customers; `listeners` is how many listeners may have a number.

    No network and no link id may belong to two of them. Raises ValueError for text that is no network, and for a slot
    outside SLOTS.
    """
    given = list(customers)
    slots = max((customer.slot for customer in given), default=-1) + 1
    if slots > SLOTS or any(customer.slot < 0 for customer in given):
        raise ValueError(f"a slot is not in 0 to {SLOTS - 1}")
    words = -(-listeners // 64)
    v4: list[Network] = []
    v6: list[Network] = []
    links: list[tuple[int, int]] = []
    limits, names = array("I", bytes(4 * slots)), [b""] * slots
    intervals, tolerances = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
    masks = array("Q", bytes(8 * slots * words))
    everything = (1 << 64 * words) - 1
    for customer in given:
        slot = customer.slot
        for text in customer.networks:
            version, first, end = parse(text)
            (v4 if version == 4 else v6).append((first, end, slot))
        links += [(link, slot) for link in customer.link_ids]
        limits[slot], names[slot] = customer.max_connections, customer.name.encode()
        if customer.rate.per_second:
            intervals[slot], tolerances[slot] = customer.rate.interval, customer.rate.tolerance
        allowed = everything if customer.listeners is None else sum(1 << number for number in set(customer.listeners))
        for word in range(words):
            masks[slot * words + word] = allowed >> 64 * word & _LOW
    links.sort()
    starts4, owners4 = _ranges(v4, 1 << 32)
    starts6, owners6 = _ranges(v6, 1 << 128)
    columns = (
        array("Q", [len(starts4), len(starts6), len(links), slots, words, sum(map(len, names))]),
        array("Q", [start >> 64 for start in starts6]),
        array("Q", [start & _LOW for start in starts6]),
        intervals,
        tolerances,
        masks,
        array("I", starts4),
        array("I", [link for link, _ in links]),
        limits,
        array("I", accumulate(map(len, names), initial=0)),
        array("H", owners4),
        array("H", owners6),
        array("H", [slot for _, slot in links]),
    )
    return b"".join([column.tobytes() for column in columns] + names)


class CustomerTable:
    """A compiled table; `content` are the bytes of `compile_table`, mapped or not."""

    def __init__(self, content: bytes | memoryview) -> None:
        view, offset = memoryview(content).toreadonly(), 0

        def column(code: str, length: int) -> memoryview:
            nonlocal offset
            start, offset = offset, offset + length * array(code).itemsize
            return view[start:offset].cast("B").cast(code)  # type: ignore[call-overload, no-any-return]

        ranges4, ranges6, links, slots, self._words, names = column("Q", _HEADER)
        self.slots = slots
        self._high, self._low = column("Q", ranges6), column("Q", ranges6)
        self.intervals = column("Q", slots)  # nanoseconds from one token of the customer's rate to the next; 0: no rate
        self.tolerances = column("Q", slots)  # nanoseconds, as `Rate.tolerance`
        self._masks = column("Q", slots * self._words)
        self._starts4 = column("I", ranges4)
        self._links = column("I", links)
        self.limits = column("I", slots)  # most connections at once; 0: no limit
        self._name_offsets = column("I", slots + 1)
        self._owners4, self._owners6 = column("H", ranges4), column("H", ranges6)
        self._link_owners = column("H", links)
        self._names = view[offset : offset + names].cast("B")

    def of_address(self, address: bytes) -> int:
        """The slot of the customer whose network, the most specific one, has this address, or NOBODY.

        `address` has 4 bytes, or 16, IPv4-mapped or not.
        """
        if len(address) == 16:
            if not address.startswith(MAPPED):
                return self._of_ipv6(int.from_bytes(address[:8]), int.from_bytes(address[8:]))
            address = address[12:]
        # The first range begins at address 0.
        owner: int = self._owners4[bisect_right(self._starts4, int.from_bytes(address)) - 1]
        return owner

    def _of_ipv6(self, high: int, low: int) -> int:
        """The range is the last that begins at or before (high, low)."""
        first = bisect_left(self._high, high)
        end = bisect_right(self._high, high, first)
        owner: int = self._owners6[bisect_right(self._low, low, first, end) - 1]
        return owner

    def of_link(self, link_id: int) -> int:
        """The slot of the customer who has this Private Link connection, or NOBODY."""
        links = self._links
        at = bisect_left(links, link_id)
        if at == len(links) or links[at] != link_id:
            return NOBODY
        owner: int = self._link_owners[at]
        return owner

    def may_use(self, slot: int, listener: int) -> bool:
        """Whether the customer may use listener number `listener`."""
        return self._masks[slot * self._words + (listener >> 6)] >> (listener & 63) & 1 == 1

    def name(self, slot: int) -> str:
        """The customer's name; empty for a slot without a customer."""
        if not 0 <= slot < self.slots:
            return ""
        return str(self._names[self._name_offsets[slot] : self._name_offsets[slot + 1]], "ascii")


def parse(text: str) -> tuple[int, int, int]:
    """The version of a network, its first address, and the first address after it; one within ::ffff:0:0/96 is IPv4.

    Raises ValueError.
    """
    if ":" not in text:
        host, slash, length = text.partition("/")
        parts = host.split(".")
        if len(parts) == 4 and (length.isdecimal() or not slash) and all(map(str.isdecimal, parts)):
            # A quarter of the time that ipaddress takes, for the spelling that nearly all networks have.
            a, b, c, d = map(int, parts)
            bits = int(length or 32)
            first, size = a << 24 | b << 16 | c << 8 | d, 1 << max(0, 32 - bits)
            if bits <= 32 and max(a, b, c, d) <= 255 and first & size - 1 == 0:
                return 4, first, first + size
        network4 = ipaddress.IPv4Network(text)
        return 4, int(network4.network_address), int(network4.broadcast_address) + 1
    network = ipaddress.IPv6Network(text)
    first, end = int(network.network_address), int(network.broadcast_address) + 1
    if network.prefixlen >= _MAPPED_BITS and first >> 32 == _MAPPED_FIRST >> 32:
        return 4, first - _MAPPED_FIRST, end - _MAPPED_FIRST
    return 6, first, end


def _ranges(networks: list[Network], size: int) -> tuple[list[int], list[int]]:
    """Disjoint ranges in the order of their first addresses, and their owners. The first range begins at 0."""
    starts, owners = [0], [NOBODY]

    def begin(start: int, owner: int) -> None:
        if starts[-1] == start:
            owners[-1] = owner  # of two that begin here, the later one is inside the other
        elif owners[-1] != owner:
            starts.append(start)
            owners.append(owner)

    # A network stands before those inside it; networks are nested or disjoint. The stack has those open at this place.
    networks.sort(key=lambda network: (network[0], -network[1]))
    open_now = [(size, NOBODY)]
    for first, end, owner in networks:
        while open_now[-1][0] <= first:
            closed, _ = open_now.pop()
            begin(closed, open_now[-1][1])
        open_now.append((end, owner))
        begin(first, owner)
    while len(open_now) > 1:
        closed, _ = open_now.pop()
        if closed < size:
            begin(closed, open_now[-1][1])
    return starts, owners
