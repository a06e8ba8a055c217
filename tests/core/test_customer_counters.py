"""The customers' counters: no counter goes back, whatever workers do and however they end; walks touch used slots."""

from __future__ import annotations

from typing import SupportsIndex, overload

from hypothesis import example, given
from hypothesis import strategies as st

from relay.core import customer_counters as cc
from relay.core.customer_counters import CustomerLayout, clear, fold, look, unfinished

LAYOUT = CustomerLayout(slots=3, reasons=2)
USED = range(2)
MOST = 5
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["accept", "refuse", "end", "bytes", "look", "die"]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.integers(0, 1),
    ),
    max_size=80,
)


@given(st.builds(CustomerLayout, st.integers(1, 9), st.integers(1, 9)))
def test_every_cell_is_one_number(layout: CustomerLayout) -> None:
    cells = list(range(cc.HEADER))
    for slot in range(layout.slots):
        cells += range(layout.totals(slot), layout.totals(slot) + cc.TOTALS)
        cells += range(layout.refusals(slot), layout.refusals(slot) + layout.reasons)
    assert sorted(cells) == list(range(layout.size))
    assert CustomerLayout(0, layout.reasons).size == 0


@given(EVENTS)
def test_what_is_counted_is_what_happened_also_when_workers_die(events: list[tuple[str, int, int, int]]) -> None:
    blocks, seen = [[[0] * LAYOUT.size for _ in range(2)] for _ in range(2)]
    retired = [0] * LAYOUT.size
    opened = [[0, 0], [0, 0]]  # by worker and slot
    accepted, up, refused = [0, 0], [0, 0], {(slot, reason): 0 for slot in USED for reason in (0, 1)}
    for kind, worker, slot, reason in [*events, ("look", 0, 0, 0)]:
        block, start = blocks[worker], LAYOUT.totals(slot)
        if kind == "accept" and opened[worker][slot] < MOST:
            block[start + cc.ACCEPTED] += 1
            opened[worker][slot] += 1
            accepted[slot] += 1
        elif kind == "refuse":
            block[start + cc.ACCEPTED] += 1
            block[LAYOUT.refusals(slot) + reason] += 1
            block[start + cc.REFUSED] += 1
            block[start + cc.ENDED] += 1
            accepted[slot] += 1
            refused[slot, reason] += 1
        elif kind == "end" and opened[worker][slot]:
            block[start + cc.ENDED] += 1
            opened[worker][slot] -= 1
        elif kind == "bytes":
            block[start + cc.BYTES_UP] += 1000
            up[slot] += 1000
        elif kind == "die":
            look(LAYOUT, block, seen[worker], USED, MOST)
            fold(LAYOUT, seen[worker], retired, USED)
            clear(LAYOUT, block, USED)
            assert not any(block)
            assert not any(seen[worker])
            opened[worker] = [0, 0]
        elif kind == "look":
            for each in (0, 1):
                look(LAYOUT, blocks[each], seen[each], USED, MOST)
            sums = [sum(column) for column in zip(retired, *seen, strict=True)]
            for each in USED:
                first = LAYOUT.totals(each)
                assert sums[first + cc.ACCEPTED] == accepted[each]
                assert unfinished(LAYOUT, sums, each) == opened[0][each] + opened[1][each]
                assert sums[first + cc.BYTES_UP] == up[each]
                for which in (0, 1):
                    assert sums[LAYOUT.refusals(each) + which] == refused[each, which]


WILD = st.lists(st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1)), min_size=LAYOUT.size, max_size=LAYOUT.size)


@given(st.lists(WILD, min_size=1, max_size=4))
@example([[(1 << 64) - 1] * LAYOUT.size] * 2)
def test_whatever_a_worker_writes_the_snapshot_is_plausible_and_never_goes_back(blocks: list[list[int]]) -> None:
    seen = memoryview(bytearray(8 * LAYOUT.size)).cast("Q")
    retired = memoryview(bytearray(8 * LAYOUT.size)).cast("Q")
    for block in blocks:
        before = seen.tolist()
        look(LAYOUT, memoryview(bytearray(8 * LAYOUT.size)).cast("Q"), seen, USED, MOST)
        assert seen.tolist()[cc.HEADER :] == before[cc.HEADER :], "a block of zeros takes nothing back"
        look(LAYOUT, block, seen, USED, MOST)
        after = seen.tolist()
        for slot in USED:
            assert 0 <= unfinished(LAYOUT, seen, slot) <= MOST
            start, reasons = LAYOUT.totals(slot), LAYOUT.refusals(slot)
            by_reason = sum(after[reasons : reasons + LAYOUT.reasons])
            assert by_reason <= after[start + cc.REFUSED] <= after[start + cc.ENDED]
        assert all(now >= then for now, then in zip(after[cc.HEADER :], before[cc.HEADER :], strict=True))
        kept = retired.tolist()
        fold(LAYOUT, seen, retired, USED)
        assert all(now >= then for now, then in zip(retired.tolist(), kept, strict=True))


class Touched(list[int]):
    """Cells that remember which of them were read or written."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(values)
        self.cells: set[int] = set()

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> int | list[int]:
        self.cells.update(range(*index.indices(len(self))) if isinstance(index, slice) else [int(index)])
        return super().__getitem__(index)

    def __setitem__(self, index: SupportsIndex | slice, value: object, /) -> None:
        assert not isinstance(index, slice)
        self.cells.add(int(index))
        super().__setitem__(index, value)  # type: ignore[call-overload]


def test_walks_touch_used_slots_and_refusals_only_where_there_are_some() -> None:
    layout = CustomerLayout(slots=100, reasons=4)
    block = Touched([0] * layout.size)
    list.__setitem__(block, layout.totals(1) + cc.ACCEPTED, 1)
    for cell in (cc.ACCEPTED, cc.ENDED, cc.REFUSED):
        list.__setitem__(block, layout.totals(2) + cell, 1)
    seen, retired = [0] * layout.size, [0] * layout.size
    look(layout, block, seen, range(3), MOST)
    fold(layout, seen, retired, range(3))
    clear(layout, block, range(3))
    refusals = range(layout.refusals(2), layout.refusals(2) + 4)
    assert block.cells == {cc.TABLE, *range(layout.totals(0), layout.totals(3)), *refusals}
