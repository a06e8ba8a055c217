"""Failed dials by upstream address: slots in the shared table, claimed as addresses fail.

Addresses change with DNS answers, so they have no fixed places. A worker claims a slot in its own block the first time
that a dial to an address fails, writes the address there, and counts. A slot is never reused for another address;
addresses of an upstream beyond SLOTS are counted together as `OTHERS`. So no exported counter goes back, no message is
needed, and the counts of a killed worker remain.

A successful dial costs nothing. A compromised worker may write anything: the number of slots is fixed, any value of
their cells decodes to an address, and in the supervisor's snapshot (`look`) a slot's address never changes and its
counts never fall.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from relay.core.limit_table import Cells, MutableRow, Row

SLOTS = 16  # addresses of one upstream that a worker counts separately
KINDS = 3  # counters in a slot
# Offsets within a slot: the address in two halves, its family and port, then the counters.
HIGH, LOW, MARK, COUNTS = 0, 1, 2, 3
SLOT = COUNTS + KINDS
SIZE = (SLOTS + 1) * SLOT  # cells of one upstream; the last slot is for OTHERS
KEPT = 4096  # addresses that are counted separately for workers that have ended

Key = tuple[int, int, int]  # the cells HIGH, LOW and MARK
OTHERS: Key = (0, 0, 0)
HALF = 64  # bits of a cell
IPV4, IPV6 = 1 << 16, 1 << 17  # in MARK, above the port; neither in a free slot


def key(host: str, port: int) -> Key:
    """The cells that identify a literal address and port in a slot. Raises ValueError for a host name."""
    address = ipaddress.ip_address(host)
    number = int(address)
    return number >> HALF, number & (1 << HALF) - 1, port | (IPV4 if address.version == 4 else IPV6)


def address(of: Key) -> tuple[str, int] | None:
    """The inverse of `key`: host and port; None for OTHERS."""
    high, low, mark = of
    port = mark & 0xFFFF
    if mark & IPV4:
        return str(ipaddress.IPv4Address(low & 0xFFFFFFFF)), port
    if mark & IPV6:
        return str(ipaddress.IPv6Address(high << HALF | low)), port
    return None


def claim(block: Cells, start: int, wanted: Key) -> int:
    """The offset of an address's counters in the upstream's section at `start`, in a slot claimed if it has none yet.

    The offset stays valid. For the block's only writer.
    """
    for slot in range(start, start + SLOTS * SLOT, SLOT):
        if not block[slot + MARK]:
            block[slot + HIGH], block[slot + LOW], block[slot + MARK] = wanted
            return slot + COUNTS
        if (block[slot + HIGH], block[slot + LOW], block[slot + MARK]) == wanted:
            return slot + COUNTS
    return start + SLOTS * SLOT + COUNTS


def look(block: Row, seen: MutableRow, start: int) -> None:
    """Update the snapshot `seen`, zeros at first, of an upstream's section from a worker's block."""
    for slot in range(start, start + SLOTS * SLOT, SLOT):
        if not seen[slot + MARK]:
            if not block[slot + MARK]:
                break
            for part in (HIGH, LOW, MARK):
                seen[slot + part] = block[slot + part]
        _raise(block, seen, slot)
    _raise(block, seen, start + SLOTS * SLOT)


def _raise(block: Row, seen: MutableRow, slot: int) -> None:
    for cell in range(slot + COUNTS, slot + SLOT):
        if (value := block[cell]) and value > seen[cell]:
            seen[cell] = value


def counted(block: Row, start: int) -> Iterator[tuple[Key, Sequence[int]]]:
    """The addresses in an upstream's section with their counts, and OTHERS if it has any."""
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
"""Failed dials by upstream number and address."""


def add(counts: Counts, upstream: int, of: Key, more: Sequence[int]) -> None:
    """Add the counts `more` of one address; beyond KEPT addresses, to OTHERS of that upstream."""
    if (upstream, of) not in counts and len(counts) >= KEPT:
        of = OTHERS
    kept = counts.setdefault((upstream, of), [0] * KINDS)
    for kind, count in enumerate(more):
        kept[kind] += count
