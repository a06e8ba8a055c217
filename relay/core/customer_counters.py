"""The layout of the customers' counters in the shared table; no I/O. `counters` has those of listeners and upstreams.

Every worker has one block and is its only writer. A block begins with the number of the customers' table that the
worker uses. Then each slot (`customer_slots`) has a row of TOTALS, and after all of those a row with its refusals by
reason, which are the outcomes that count as one. A block is as large as there may ever be customers, but only touched
pages take memory: a walk is over the slots that were ever used, and reads a row of refusals only if the slot has any.

The supervisor keeps a snapshot of each block (`look`), in which no counter falls, and the counters of workers that have
ended (`fold`). A compromised worker may write anything: in the snapshot a customer has between 0 and `most` connections
without an end, and no more refusals than ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relay.core.limit_table import Cells

# Cells of the block's header: the number of the customers' table that new connections are looked up in.
TABLE = 0
HEADER = 8  # a cache line
# Offsets within the row of totals.
ACCEPTED = 0  # connections of the customer, refused ones included
ENDED = 1  # of these, those that have ended or were refused
BYTES_UP = 2
BYTES_DOWN = 3
REFUSED = 4  # sum over all reasons
TOTALS = 5
CEILING = 1 << 62  # of every counter, so that no sum of what a compromised worker writes is beyond 64 bits


@dataclass(frozen=True, slots=True)
class CustomerLayout:
    """Offsets in a block, for that many slots and reasons."""

    slots: int
    reasons: int

    @property
    def size(self) -> int:
        """Cells of one worker's block; 0 without customers."""
        return HEADER + self.slots * (TOTALS + self.reasons) if self.slots else 0

    def totals(self, slot: int) -> int:
        """The offset of a slot's totals."""
        return HEADER + slot * TOTALS

    def refusals(self, slot: int) -> int:
        """The offset of a slot's refusals by reason."""
        return HEADER + self.slots * TOTALS + slot * self.reasons


def look(layout: CustomerLayout, block: Cells, seen: Cells, slots: Iterable[int], most: int) -> None:
    """Update the snapshot `seen`, zeros at first, of these slots from a worker's block; impossible values are rejected.

    `most` is how many connections a worker can have at most.
    """
    seen[TABLE] = block[TABLE]
    for slot in slots:
        start = layout.totals(slot)
        if block[start : start + TOTALS] == seen[start : start + TOTALS]:
            continue  # most customers since the last look; a worker writes a refusal's reason before the sum
        for cell in range(start, start + TOTALS):
            value = min(block[cell], CEILING)
            if value > seen[cell]:
                seen[cell] = value
        ended = seen[start + ENDED]
        # The worker may have counted an end between two reads, so ENDED may be ahead of ACCEPTED.
        accepted = min(max(seen[start + ACCEPTED], ended), ended + most)
        if accepted != seen[start + ACCEPTED]:
            seen[start + ACCEPTED] = accepted
        refused = seen[start + REFUSED]
        if refused > ended:
            refused = seen[start + REFUSED] = ended
        if refused:
            _look_at_refusals(layout, block, seen, slot, refused)


def _look_at_refusals(layout: CustomerLayout, block: Cells, seen: Cells, slot: int, refused: int) -> None:
    """Update the refusals of one slot by reason; together they are at most `refused`."""
    start = layout.refusals(slot)
    cells = range(start, start + layout.reasons)
    left = refused - sum(seen[cell] for cell in cells)
    for cell in cells:
        more = min(left, block[cell] - seen[cell])
        if more > 0:
            seen[cell] += more
            left -= more


def unfinished(layout: CustomerLayout, row: Cells, slot: int) -> int:
    """Connections of a customer that have not ended, in a snapshot or a sum of snapshots."""
    start = layout.totals(slot)
    return row[start + ACCEPTED] - row[start + ENDED]


def fold(layout: CustomerLayout, seen: Cells, retired: Cells, slots: Iterable[int]) -> None:
    """Move the counters of a worker that has ended from its snapshot into `retired`; its connections have ended."""
    seen[TABLE] = 0
    for slot in slots:
        start = layout.totals(slot)
        seen[start + ENDED] = seen[start + ACCEPTED]
        for cell in _used(layout, seen, slot):
            retired[cell] = min(retired[cell] + seen[cell], CEILING)
            seen[cell] = 0


def clear(layout: CustomerLayout, block: Cells, slots: Iterable[int]) -> None:
    """Set the counters of these slots to zero: of a dead worker, or where a slot goes to another customer."""
    for slot in slots:
        for cell in _used(layout, block, slot):
            if block[cell]:
                block[cell] = 0


def _used(layout: CustomerLayout, row: Cells, slot: int) -> list[int]:
    """The cells of a slot; those of its refusals only if there are any, so that untouched pages stay untouched."""
    start = layout.totals(slot)
    cells = [*range(start, start + TOTALS)]
    if row[start + REFUSED]:
        refusals = layout.refusals(slot)
        cells += range(refusals, refusals + layout.reasons)
    return cells
