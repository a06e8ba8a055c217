"""The extensions of a hello are found alike whether their layout is new or known from earlier hellos."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.hello_layouts import ALPN, SERVER_NAME, Layouts, Truncated, Twice

MANY = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")), deadline=None)
SEEN = 3  # times until a layout is certainly known


def block_of(extensions: list[tuple[int, bytes]]) -> bytes:
    return b"".join(kind.to_bytes(2) + len(body).to_bytes(2) + body for kind, body in extensions)


def found(layouts: Layouts, block: bytes) -> Any:
    try:
        return layouts.find(block)
    except (Truncated, Twice) as error:
        return type(error)


# Few kinds, so that some come twice, and short bodies, so that blocks are of the same size though they differ.
KINDS = st.sampled_from([SERVER_NAME, ALPN, 1, 43, 0x0A0A, 0xFFFF])
BYTES = st.sampled_from([0, 1, 2, 4, 10, 16, 255])
EXTENSIONS = st.lists(st.tuples(KINDS, st.binary(max_size=6)), max_size=6)


def test_two_extensions_are_found_wherever_they_are() -> None:
    layouts = Layouts()
    for _ in range(SEEN):
        assert layouts.find(block_of([(43, b"version"), (SERVER_NAME, b"name"), (ALPN, b"protocols")])) == (
            b"name",
            b"protocols",
        )
        assert layouts.find(block_of([(ALPN, b""), (51, b"share")])) == (None, b"")
        assert layouts.find(b"") == (None, None)


@MANY
@given(EXTENSIONS)
def test_the_bodies_are_those_that_were_put_there(extensions: list[tuple[int, bytes]]) -> None:
    layouts, block, bodies = Layouts(), block_of(extensions), dict(extensions)
    expected = (bodies.get(SERVER_NAME), bodies.get(ALPN)) if len(bodies) == len(extensions) else Twice
    for _ in range(SEEN):
        assert found(layouts, block) == expected


@settings(MANY, max_examples=MANY.max_examples // 3)  # each is several
@given(st.lists(EXTENSIONS, max_size=4), st.lists(st.tuples(st.integers(0, 60), BYTES), max_size=3))
def test_what_was_seen_before_changes_nothing(
    several: list[list[tuple[int, bytes]]], damage: list[tuple[int, int]]
) -> None:
    layouts = Layouts()
    blocks = [block_of(extensions) for extensions in several]
    for block in blocks * SEEN:
        assert found(layouts, block) == found(Layouts(), block)
    for block in blocks:
        # The same size, and nearly the same: bodies, kinds and lengths that are not what was seen.
        damaged = bytearray(block)
        for place, value in damage:
            if place < len(damaged):
                damaged[place] = value
        for _ in range(SEEN):
            assert found(layouts, bytes(damaged)) == found(Layouts(), bytes(damaged))


@pytest.mark.parametrize("cut", range(1, 12))
def test_less_than_a_whole_extension_is_told(cut: int) -> None:
    layouts = Layouts()
    block = block_of([(SERVER_NAME, b"name"), (43, b"")])
    for _ in range(SEEN):
        assert layouts.find(block) == (b"name", None)
        # 8: after the first extension, which is whole.
        assert found(layouts, block[: len(block) - cut]) == ((b"name", None) if cut == 4 else Truncated)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "extensions", "longer", "others"),
    [(2000, 20, 1, 0), (2000, 20, 0, 20), (50, 4000, 1, 0)],
    ids=["many sizes", "many layouts", "many extensions"],
)
def test_memory_has_a_bound_whatever_is_sent(blocks: int, extensions: int, longer: int, others: int) -> None:
    layouts = Layouts()
    tracemalloc.start()
    try:
        for number in range(blocks):
            kinds = range(number * others, number * others + extensions)
            block = block_of([(0xFFFF, bytes(number * longer)), *[(kind, b"") for kind in kinds]])
            for _ in range(SEEN):
                assert layouts.find(block) is not None
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1_000_000
