"""Failed dials by address, in slots that a worker claims: nothing that was counted is lost or goes back."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from relay.core import counters, failed_dials
from relay.core.counters import Layout
from relay.core.failed_dials import KINDS, OTHERS, SIZE, SLOTS, Counts, add, address, claim, counted, key

HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
PORTS = st.integers(0, 65535)
CELL = st.integers(0, (1 << 64) - 1)


@given(HOSTS, PORTS)
def test_an_address_comes_back_as_it_was(host: str, port: int) -> None:
    assert address(key(host, port)) == (host, port)
    assert key(host, port) != OTHERS
    assert address(OTHERS) is None


@given(st.lists(CELL, min_size=SIZE, max_size=SIZE))
def test_whatever_a_worker_has_written_is_some_addresses_and_no_more_than_there_are_slots(cells: list[int]) -> None:
    found = list(counted(cells, 0))
    assert len(found) <= SLOTS + 1
    for of, counts in found:
        assert len(counts) == KINDS
        named = address(of)
        if named is not None:
            ipaddress.ip_address(named[0])
            assert 0 <= named[1] <= 65535


LAYOUT = Layout(1, 2, 3)
# Few addresses beside more than there are slots.
NUMBERS = st.one_of(st.integers(0, 3), st.integers(0, SLOTS + 10))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("fail"), st.integers(0, 1), st.integers(0, 1), NUMBERS, st.integers(0, KINDS - 1)),
        st.tuples(st.just("die"), st.integers(0, 1), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=120,
)


def shown(blocks: list[list[int]], retired: Counts) -> Counts:
    found: Counts = {of: list(counts) for of, counts in retired.items()}
    for upstream in range(LAYOUT.upstreams):
        for block in blocks:
            for of, more in counted(block, LAYOUT.failed(upstream)):
                add(found, upstream, of, more)
    return found


@given(STEPS)
def test_every_failure_is_counted_once_and_no_number_goes_back(steps: list[tuple[str, int, int, int, int]]) -> None:
    blocks = [[0] * LAYOUT.size for _ in range(2)]
    retired: Counts = {}
    cells = [0] * LAYOUT.size
    total = [[0] * KINDS for _ in range(LAYOUT.upstreams)]
    before: Counts = {}
    for kind, worker, upstream, number, how in steps:
        block = blocks[worker]
        if kind == "fail":
            block[claim(block, LAYOUT.failed(upstream), key(f"10.0.0.{number}", 443)) + how] += 1
            total[upstream][how] += 1
        else:
            counters.fold_failed(LAYOUT, block, retired)
            counters.fold(LAYOUT, block, cells, 2)
            assert not any(block)
        now = shown(blocks, retired)
        for of, counts in before.items():
            assert all(after >= one for after, one in zip(now[of], counts, strict=True)), of
        before = now
    for upstream in range(LAYOUT.upstreams):
        of_it = [counts for (number, _), counts in before.items() if number == upstream]
        assert [sum(column) for column in zip(*of_it, strict=True)] == (total[upstream] if of_it else [])
    assert not any(cells), "they are not among the counters that are added up cell by cell"


def test_an_address_has_its_slot_for_good_and_the_seventeenth_shares_the_last() -> None:
    block = [0] * LAYOUT.size
    start = LAYOUT.failed(1)
    slots = [claim(block, start, key(f"fd00::{number}", 443)) for number in range(SLOTS + 2)]
    assert len(set(slots)) == SLOTS + 1
    assert slots[-1] == slots[-2]
    assert slots == [claim(block, start, key(f"fd00::{number}", 443)) for number in range(SLOTS + 2)]
    assert not list(counted(block, LAYOUT.failed(0)))


def test_what_is_kept_of_dead_workers_is_bounded() -> None:
    counts: Counts = {}
    for number in range(failed_dials.KEPT + 100):
        add(counts, 0, key(str(ipaddress.IPv4Address(number)), 1), [1, 0, 0])
    assert len(counts) == failed_dials.KEPT + 1
    assert counts[0, OTHERS] == [100, 0, 0]
