"""The budget of prereads: its sums are those of a plain model, and the oldest partial preread is over budget first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.engines.preread import SHARE, PrereadBudget

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "complete", "forget"]), st.integers(0, 5), st.integers(1, 50)),
    max_size=60,
)


@given(STEPS, st.integers(0, 400))
def test_what_is_counted_and_which_preread_is_over_budget(steps: list[tuple[str, int, int]], limit: int) -> None:
    preread: PrereadBudget[int] = PrereadBudget(limit)
    partial: dict[int, int] = {}
    whole: dict[int, int] = {}
    for what, item, size in steps:
        if what == "add" and item not in whole:
            preread.add_partial(item, size)
            partial[item] = partial.get(item, 0) + size
        elif what == "complete" and item not in whole:
            preread.complete(item, size)
            partial.pop(item, None)
            whole[item] = size
        elif what == "forget":
            preread.forget(item)
            partial.pop(item, None)
            whole.pop(item, None)
        assert preread.bytes == sum(partial.values()) + sum(whole.values())
        assert preread.whole == whole
        over_budget = limit > 0 and sum(partial.values()) > limit // SHARE and len(partial) > 1
        assert preread.over_budget() == (next(iter(partial)) if over_budget else None)
    for item in range(6):
        preread.forget(item)
    assert preread.bytes == 0
