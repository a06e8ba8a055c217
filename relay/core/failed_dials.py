"""How often an upstream's addresses could not be connected to: slots in the shared table, claimed as addresses fail.

Addresses come and go with what names resolve to, so none has a place of its own from the start. In its own block a
worker claims a slot for an address the first time that a dial to it fails, writes there which one it is, and counts. A
slot is never given to another address; addresses of an upstream beyond sixteen are counted together as `OTHERS`. So no
number goes back while it is shown, no message is needed, and what a killed worker counted is still there.

A dial that succeeds costs nothing. Whatever a worker that was taken over writes, there are no more slots than these,
any value of their cells is an address, and what was seen of a slot (`look`) stays: its address for ever, its counts at
least.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from relay.core.limit_table import Cells, Row

SLOTS = 16  # addresses of one upstream that a worker tells apart
KINDS = 3  # counters in a slot
# Offsets within a slot: the address in two halves, how it is to be read with its port, then the counters.
HIGH, LOW, MARK, COUNTS = 0, 1, 2, 3
SLOT = COUNTS + KINDS
SIZE = (SLOTS + 1) * SLOT  # cells of one upstream; the last slot is OTHERS'
KEPT = 4096  # addresses of workers that are no more which are told apart

Key = tuple[int, int, int]  # the cells HIGH, LOW and MARK
OTHERS: Key = (0, 0, 0)
HALF = 64  # bits of a cell
IPV4, IPV6 = 1 << 16, 1 << 17  # in MARK, above the port; neither: nobody has claimed the slot


def key(host: str, port: int) -> Key:
    """What a slot says of an address. Raises ValueError if it is no literal one."""
    address = ipaddress.ip_address(host)
    number = int(address)
    return number >> HALF, number & (1 << HALF) - 1, port | (IPV4 if address.version == 4 else IPV6)


def address(of: Key) -> tuple[str, int] | None:
    """The inverse: host and port; None for OTHERS."""
    high, low, mark = of
    port = mark & 0xFFFF
    if mark & IPV4:
        return str(ipaddress.IPv4Address(low & 0xFFFFFFFF)), port
    if mark & IPV6:
        return str(ipaddress.IPv6Address(high << HALF | low)), port
    return None


def claim(block: Cells, start: int, wanted: Key) -> int:
    """Where the counters of that address stand in an upstream's section, which begins at `start`: now and from now on.

    For the block's only writer.
    """
    for slot in range(start, start + SLOTS * SLOT, SLOT):
        if not block[slot + MARK]:
            block[slot + HIGH], block[slot + LOW], block[slot + MARK] = wanted
            return slot + COUNTS
        if (block[slot + HIGH], block[slot + LOW], block[slot + MARK]) == wanted:
            return slot + COUNTS
    return start + SLOTS * SLOT + COUNTS


def look(block: Row, seen: Cells, start: int) -> None:
    """Bring what was `seen` of an upstream's section, zeros at first, up to what a worker's block says now."""
    for slot in range(start, start + SLOTS * SLOT, SLOT):
        if not seen[slot + MARK]:
            if not block[slot + MARK]:
                break
            for part in (HIGH, LOW, MARK):
                seen[slot + part] = block[slot + part]
        _raise(block, seen, slot)
    _raise(block, seen, start + SLOTS * SLOT)


def _raise(block: Row, seen: Cells, slot: int) -> None:
    for cell in range(slot + COUNTS, slot + SLOT):
        seen[cell] = max(seen[cell], block[cell])


def counted(block: Row, start: int) -> Iterator[tuple[Key, Sequence[int]]]:
    """The addresses of an upstream's section that have failed, with their counts; OTHERS among them if it has any."""
    for slot in range(start, start + SLOTS * SLOT, SLOT):
        if not block[slot + MARK]:
            break
        yield (block[slot + HIGH], block[slot + LOW], block[slot + MARK]), _counts(block, slot)
    others = _counts(block, start + SLOTS * SLOT)
    if any(others):
        yield OTHERS, others


def _counts(block: Row, slot: int) -> list[int]:
    return [block[slot + COUNTS + kind] for kind in range(KINDS)]


Counts = dict[tuple[int, Key], list[int]]
"""Failed dials by number of the upstream and address."""


def add(counts: Counts, upstream: int, of: Key, more: Sequence[int]) -> None:
    """Add to what is there; beyond KEPT addresses to the others of that upstream."""
    if (upstream, of) not in counts and len(counts) >= KEPT:
        of = OTHERS
    kept = counts.setdefault((upstream, of), [0] * KINDS)
    for kind, count in enumerate(more):
        kept[kind] += count
