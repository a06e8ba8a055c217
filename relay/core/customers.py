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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from relay.core.access_list import MAPPED
from relay.core.rates import Rate

SLOTS = 16_384  # customers at once, those included who were removed and still have connections
NOBODY = 0xFFFF  # no customer; a slot has 16 bits

UNLIMITED = Rate(0.0, 1.0)

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
    # Numbers and arrays rather than objects: what thousands of objects leave behind stays with the process.
    words = -(-listeners // 64)
    everything = (1 << 64 * words) - 1
    v4: list[int] = []
    v6: list[int] = []
    links: list[int] = []
    names: list[bytes] = []
    limits, intervals, tolerances, masks = array("I"), array("Q"), array("Q"), array("Q")
    for customer in customers:
        slot = customer.slot
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot} is not in 0 to {SLOTS - 1}")
        if more := max(0, slot + 1 - len(names)):
            names += [b""] * more
            limits.frombytes(bytes(4 * more))
            for column in (intervals, tolerances):
                column.frombytes(bytes(8 * more))
            masks.frombytes(bytes(8 * more * words))
        for text in customer.networks:
            version, first, length = parse(text)
            (v4 if version == 4 else v6).append(first << 24 | length << 16 | slot)
        links += [link << 16 | slot for link in customer.link_ids]
        limits[slot], names[slot] = customer.max_connections, customer.name.encode()
        if customer.rate.per_second:
            intervals[slot], tolerances[slot] = customer.rate.interval, customer.rate.tolerance
        allowed = everything if customer.listeners is None else sum(1 << number for number in set(customer.listeners))
        for word in range(words):
            masks[slot * words + word] = allowed >> 64 * word & _LOW
    links.sort()
    high, low, starts4 = array("Q"), array("Q"), array("I")
    owners4, owners6 = array("H"), array("H")
    for start, owner in _ranges(v4, 32):
        starts4.append(start)
        owners4.append(owner)
    for start, owner in _ranges(v6, 128):
        high.append(start >> 64)
        low.append(start & _LOW)
        owners6.append(owner)
    columns = (
        array("Q", [len(starts4), len(high), len(links), len(names), words, sum(map(len, names))]),
        high,
        low,
        intervals,
        tolerances,
        masks,
        starts4,
        array("I", [link >> 16 for link in links]),
        limits,
        array("I", accumulate(map(len, names), initial=0)),
        owners4,
        owners6,
        array("H", [link & 0xFFFF for link in links]),
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
    """The version of a network, its first address, and its prefix length; one within ::ffff:0:0/96 is IPv4.

    Raises ValueError.
    """
    if ":" not in text:
        host, slash, digits = text.partition("/")
        parts = host.split(".")
        if len(parts) == 4 and (digits.isdecimal() or not slash) and all(map(str.isdecimal, parts)):
            # A quarter of the time that ipaddress takes, for the spelling that nearly all networks have.
            a, b, c, d = map(int, parts)
            length = int(digits or 32)
            first = a << 24 | b << 16 | c << 8 | d
            if length <= 32 and max(a, b, c, d) <= 255 and first & (1 << 32 - length) - 1 == 0:
                return 4, first, length
        network4 = ipaddress.IPv4Network(text)
        return 4, int(network4.network_address), network4.prefixlen
    network, mapped = ipaddress.IPv6Network(text), _MAPPED_FIRST >> 32
    first, length = int(network.network_address), network.prefixlen
    if length >= _MAPPED_BITS and first >> 32 == mapped:
        return 4, first - _MAPPED_FIRST, length - _MAPPED_BITS
    return 6, first, length


def _ranges(networks: list[int], bits: int) -> Iterator[tuple[int, int]]:
    """Disjoint ranges in the order of their first addresses, each with its owner. The first range begins at 0.

    Each network is one number: its first address, its prefix length (8 bits), and its owner (16 bits).
    """
    # Sorted, a network stands before those inside it; networks are nested or disjoint. The stack has those open here.
    networks.sort()
    open_now = [(1 << bits, NOBODY)]
    start, owner = 0, NOBODY  # the last range, which is certain once another begins beyond it

    for network in networks:
        first, length = network >> 24, network >> 16 & 0xFF
        while open_now[-1][0] <= first:
            closed, _ = open_now.pop()
            outer = open_now[-1][1]
            if closed > start and outer != owner:
                yield start, owner
                start = closed
            owner = outer
        inner = network & 0xFFFF
        open_now.append((first + (1 << bits - length), inner))
        if first > start and inner != owner:
            yield start, owner
            start = first
        owner = inner
    while len(open_now) > 1:
        closed, _ = open_now.pop()
        outer = open_now[-1][1]
        if start < closed < 1 << bits and outer != owner:
            yield start, owner
            start = closed
        if closed < 1 << bits:
            owner = outer
    yield start, owner
