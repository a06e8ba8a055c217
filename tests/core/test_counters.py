"""The layout of a worker's counters, their buckets, and what is kept of a worker that is no more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import counters, failed_dials
from relay.core.counters import (
    CONNECT_BUCKETS,
    DURATION_BUCKETS,
    Layout,
    SparseRow,
    Used,
    bucket,
    fold,
    look,
    on_route,
    unfinished,
)

LAYOUTS = st.builds(
    Layout, st.integers(0, 6), st.integers(0, 6), st.integers(1, 30), st.integers(1, 3), st.integers(0, 6)
)


def listener_cells(layout: Layout, index: int) -> list[int]:
    start, durations = layout.listener(index), layout.durations(index)
    named = [start + offset for offset in (counters.ACCEPTED, counters.BYTES_UP, counters.BYTES_DOWN)]
    outcomes = [start + counters.OUTCOME + number for number in range(layout.outcomes)]
    histogram = [durations + number for number in range(len(DURATION_BUCKETS) + 1)]
    return [*named, start + counters.DURATION_SUM, *outcomes, *histogram]


def upstream_cells(layout: Layout, index: int) -> list[int]:
    start = layout.upstream(index)
    return [start, *(start + 1 + number for number in range(len(CONNECT_BUCKETS) + 1))]


@settings(deadline=None)
@given(LAYOUTS)
def test_every_cell_is_one_number_and_every_number_has_a_cell(layout: Layout) -> None:
    cells = [counters.HEARTBEAT, counters.LAG, counters.HELD, counters.QUEUED]
    cells += [counters.LOG_DROPPED, counters.ACCEPT_PAUSES]
    for index in range(layout.listeners):
        cells += listener_cells(layout, index)
    for index in range(layout.routes):
        start = layout.route(index)
        cells += [start + counters.ROUTED, start + counters.ROUTE_BYTES_UP, start + counters.ROUTE_BYTES_DOWN]
        cells += [start + counters.ROUTE_OUTCOME + number for number in range(layout.outcomes)]
    for index in range(layout.upstreams):
        cells += upstream_cells(layout, index)
        cells += [layout.ports(index, source) for source in range(layout.sources)]
        cells += range(layout.failed(index), layout.failed(index) + failed_dials.SIZE)
    assert sorted(cells) == list(range(layout.size))


@settings(deadline=None)
@given(st.sampled_from([CONNECT_BUCKETS, DURATION_BUCKETS]), st.floats(0, 1e7))
def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed(bounds: tuple[float, ...], value: float) -> None:
    naive = next((number for number, bound in enumerate(bounds) if value <= bound), len(bounds))
    assert bucket(bounds, value) == naive


def test_a_bound_belongs_to_its_bucket() -> None:
    for bounds in (CONNECT_BUCKETS, DURATION_BUCKETS):
        assert list(bounds) == sorted(set(bounds))
        assert [bucket(bounds, bound) for bound in bounds] == list(range(len(bounds)))
        assert bucket(bounds, float("inf")) == len(bounds)


LAYOUT = Layout(2, 2, 3, 2, 2)
LOST = 2  # which outcome open connections of a dead worker get
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("end"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("bytes"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("route"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("connect"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("die"), st.integers(0, 1), st.just(0)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(EVENTS)
def test_no_counter_goes_back_when_workers_die_and_every_connection_ends(events: list[tuple[str, int, int]]) -> None:
    blocks = [[0] * LAYOUT.size for _ in range(2)]
    retired = [0] * LAYOUT.size
    opened = [[0, 0], [0, 0]]  # by worker and listener
    accepted = lost = 0
    before = [0] * LAYOUT.size
    for kind, worker, index in events:
        block = blocks[worker]
        block[counters.HEARTBEAT] = 12345
        start = LAYOUT.listener(index)
        if kind == "accept":
            block[start + counters.ACCEPTED] += 1
            opened[worker][index] += 1
            accepted += 1
        elif kind == "end" and opened[worker][index]:
            block[start + counters.OUTCOME] += 1
            opened[worker][index] -= 1
        elif kind == "bytes":
            block[start + counters.BYTES_UP] += 1000
        elif kind == "route":
            block[LAYOUT.route(index) + counters.ROUTED] += 1
        elif kind == "connect":
            block[LAYOUT.upstream(index)] += 17
        elif kind == "die":
            expected = sum(opened[worker])
            assert fold(LAYOUT, block, retired, LOST) == expected
            assert not any(block), "the successor begins at nothing"
            lost += expected
            opened[worker] = [0, 0]
        for number, counts in enumerate(opened):
            assert [unfinished(LAYOUT, blocks[number], listener) for listener in range(2)] == counts
        totals = [kept + sum(row[cell] for row in blocks) for cell, kept in enumerate(retired)]
        assert all(now >= then for now, then in zip(totals[counters.GAUGES :], before[counters.GAUGES :], strict=True))
        before = totals
    for block in blocks:
        fold(LAYOUT, block, retired, LOST)
    ended = [
        sum(retired[LAYOUT.listener(listener) + counters.OUTCOME + number] for listener in range(2))
        for number in range(LAYOUT.outcomes)
    ]
    assert sum(ended) == accepted
    assert ended[LOST] >= lost
    for route in range(LAYOUT.routes):
        start = LAYOUT.route(route)
        assert retired[start + counters.ROUTED] == retired[start + counters.ROUTE_OUTCOME + LOST]
    assert retired[: counters.GAUGES] == [0] * counters.GAUGES, "gauges of the dead are worth nothing"


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 40), min_size=LAYOUT.size, max_size=LAYOUT.size))
def test_fold_keeps_every_sum(values: list[int]) -> None:
    block = list(values)
    for listener in range(LAYOUT.listeners):  # a block as a worker writes it: no more ends than beginnings
        start = LAYOUT.listener(listener)
        block[start + counters.ACCEPTED] += sum(block[start + counters.OUTCOME :][: LAYOUT.outcomes])
    for route in range(LAYOUT.routes):
        start = LAYOUT.route(route)
        block[start + counters.ROUTED] += sum(block[start + counters.ROUTE_OUTCOME :][: LAYOUT.outcomes])
    written = list(block)
    gained = [0] * LAYOUT.size
    lost = fold(LAYOUT, block, gained, LOST)
    for listener in range(LAYOUT.listeners):
        assert unfinished(LAYOUT, gained, listener) == 0
        cell = LAYOUT.listener(listener) + counters.OUTCOME + LOST
        lost -= gained[cell] - written[cell]
        gained[cell] = written[cell]
    assert lost == 0
    for route in range(LAYOUT.routes):
        assert on_route(LAYOUT, gained, route) == 0
        cell = LAYOUT.route(route) + counters.ROUTE_OUTCOME + LOST
        assert gained[cell] == written[cell] + on_route(LAYOUT, written, route)
        gained[cell] = written[cell]
    counted = slice(counters.GAUGES, LAYOUT.gauges)
    assert gained[counted] == written[counted]
    assert not any(gained[: counters.GAUGES] + gained[LAYOUT.gauges :]), "neither gauges nor failed dials"
    assert not any(block)


def failed(row: list[int]) -> dict[tuple[int, failed_dials.Key], int]:
    """Failed dials by upstream and address, all kinds together."""
    found: dict[tuple[int, failed_dials.Key], int] = {}
    for upstream in range(LAYOUT.upstreams):
        for key, counts in failed_dials.counted(row, LAYOUT.failed(upstream)):
            found[upstream, key] = found.get((upstream, key), 0) + sum(counts)
    return found


CELL = st.one_of(st.integers(0, 3), st.integers(0, (1 << 64) - 1))
NONSENSE = st.lists(st.lists(CELL, min_size=LAYOUT.size, max_size=LAYOUT.size), min_size=1, max_size=5)
MOST = 5


@pytest.mark.slow
@settings(deadline=None)
@given(NONSENSE)
def test_whatever_a_worker_writes_no_counter_goes_back_and_the_accounts_are_right(blocks: list[list[int]]) -> None:
    seen, retired = [0] * LAYOUT.size, [0] * LAYOUT.size
    counted = slice(counters.GAUGES, LAYOUT.gauges)
    for block in blocks:
        before = list(seen)
        look(LAYOUT, block, seen, MOST)
        assert all(now >= then for now, then in zip(seen[counted], before[counted], strict=True))
        gauges = slice(LAYOUT.gauges, LAYOUT.end_of_gauges)
        assert seen[: counters.GAUGES] + seen[gauges] == block[: counters.GAUGES] + block[gauges]
        assert all(failed(seen).get(key, 0) >= count for key, count in failed(before).items())
        assert all(0 <= unfinished(LAYOUT, seen, listener) <= MOST for listener in range(LAYOUT.listeners))
        assert all(0 <= on_route(LAYOUT, seen, route) <= MOST for route in range(LAYOUT.routes))
    last = list(seen)
    lost = fold(LAYOUT, seen, retired, LOST)
    assert 0 <= lost <= MOST * LAYOUT.listeners
    assert all(now >= then for now, then in zip(retired[counted], last[counted], strict=True))
    assert not any(unfinished(LAYOUT, retired, listener) for listener in range(LAYOUT.listeners))
    assert not any(seen)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, LAYOUT.listeners - 1)), max_size=40))
def test_what_a_worker_counts_rightly_is_believed(events: list[tuple[bool, int]]) -> None:
    block, seen = [0] * LAYOUT.size, [0] * LAYOUT.size
    for comes, listener in events:
        start = LAYOUT.listener(listener)
        if comes and unfinished(LAYOUT, block, listener) < MOST:
            block[start + counters.ACCEPTED] += 1
        elif unfinished(LAYOUT, block, listener):
            block[start + counters.OUTCOME] += 1
        look(LAYOUT, block, seen, MOST)
        assert seen == block


@settings(deadline=None)
@given(st.data())
def test_walks_keep_to_the_numbers_in_use(data: st.DataObject) -> None:
    """Whatever a worker writes elsewhere; and a row that keeps only what is not zero gives the same."""
    layout = Layout(3, 3, 2, 1, 3)
    used = Used(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    block = [0] * layout.size
    for cell, value in data.draw(st.lists(st.tuples(st.integers(0, layout.size - 1), CELL), max_size=80)):
        block[cell] = value
    inside = {cell for start, end in layout.runs(used) for cell in range(start, end)}
    touched: set[int] = set()

    class Block(list[int]):
        def __getitem__(self, cell: object) -> int:  # type: ignore[override]  # the walks take single cells only
            assert isinstance(cell, int)
            touched.add(cell)
            return list.__getitem__(self, cell)

    plain, sparse = [0] * layout.size, SparseRow()
    look(layout, Block(block), plain, MOST, used)
    look(layout, block, sparse, MOST, used)
    assert touched <= inside
    assert [sparse[cell] for cell in range(layout.size)] == plain
    assert not any(plain[cell] for cell in range(layout.size) if cell not in inside)
    sums = counters.totals(layout, used, [plain, sparse])
    assert sums == [2 * value for value in plain[: layout.gauges]]
    retired, kept = [0] * layout.size, SparseRow()
    assert fold(layout, plain, retired, 1, used) == fold(layout, sparse, kept, 1, used)
    assert [kept[cell] for cell in range(layout.size)] == retired
    assert not any(plain)
    assert not any(sparse.values())
