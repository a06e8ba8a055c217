"""What has come before an upstream is there: the sums are those of a plain model, and the oldest has to go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.engines.preread import SHARE, PrereadBudget

STEPS = st.lists(
    st.tuples(st.sampled_from(["grow", "grow", "grow", "finish", "forget"]), st.integers(0, 5), st.integers(1, 50)),
    max_size=60,
)


@given(STEPS, st.integers(0, 400))
def test_what_is_counted_and_who_has_to_go(steps: list[tuple[str, int, int]], limit: int) -> None:
    preread: PrereadBudget[int] = PrereadBudget(limit)
    unfinished: dict[int, int] = {}
    whole: dict[int, int] = {}
    for what, item, size in steps:
        if what == "grow" and item not in whole:
            preread.grow(item, size)
            unfinished[item] = unfinished.get(item, 0) + size
        elif what == "finish" and item not in whole:
            preread.finish(item, size)
            unfinished.pop(item, None)
            whole[item] = size
        elif what == "forget":
            preread.forget(item)
            unfinished.pop(item, None)
            whole.pop(item, None)
        assert preread.bytes == sum(unfinished.values()) + sum(whole.values())
        assert preread.whole == whole
        too_much = limit > 0 and sum(unfinished.values()) > limit // SHARE and len(unfinished) > 1
        assert preread.too_much() == (next(iter(unfinished)) if too_much else None)
    for item in range(6):
        preread.forget(item)
    assert preread.bytes == 0
