"""The customers' slots over any course of reloads, against what is promised of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.customer_slots import CustomerSlots, NoSlot
from relay.core.customers import SLOTS

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)


@given(st.lists(st.tuples(NAMES, st.sets(st.integers(0, 5))), max_size=12))
def test_over_any_course_of_reloads(reloads: list[tuple[list[str], set[int]]]) -> None:
    slots = CustomerSlots(most=6)
    last: dict[str, int] = {}  # each name's slot, as long as no other name has got it
    for names, busy in reloads:
        known = dict(slots.names())
        try:
            change = slots.change(names, lambda slot, busy=busy: slot not in busy)  # type: ignore[misc]
        except NoSlot:
            idle = [name for name, slot in slots.removed.items() if name not in names and slot not in busy]
            new = [name for name in names if name not in known]
            assert len(new) > slots.most - slots.used + len(idle), "there really was none"
            assert dict(slots.names()) == known, "nothing has changed"
            continue
        slots = change.slots
        assert list(slots.present) == [name for name in names if name in known] + [n for n in names if n not in known]
        everything = [slot for _, slot in slots.names()]
        assert sorted(everything) == list(range(slots.used)), "each slot that was ever used has one name"
        for name, slot in slots.names():
            if name in last:
                assert slot == last[name], "a name keeps its slot, or gets it back"
        assert not busy & set(change.reused)
        assert not change.reused or slots.used == slots.most, "others' slots are the last resort"
        for name in known.keys() - dict(slots.names()).keys():
            assert known[name] in change.reused
            last.pop(name, None)
        last |= dict(slots.names())


def test_those_removed_longest_ago_give_their_slots_first() -> None:
    slots = CustomerSlots(most=3)
    for names in (["a", "b", "c"], ["b", "c"], ["c"], ["a", "c"]):
        slots = slots.change(names, lambda slot: False).slots
    slots = slots.change(["c"], lambda slot: False).slots
    assert list(slots.removed) == ["b", "a"]
    change = slots.change(["c", "d"], lambda slot: True)
    assert change.slots.present == {"c": 2, "d": 1}
    assert change.reused == (1,)


def test_a_reload_that_is_given_up_leaves_the_slots_as_they_were() -> None:
    slots = CustomerSlots(most=1).change(["a"], lambda slot: True).slots
    with pytest.raises(NoSlot):
        slots.change(["b"], lambda slot: True)  # workers do not know yet that a is gone
    with pytest.raises(NoSlot):
        slots.change(["a", "b"], lambda slot: True)
    assert slots.present == {"a": 0}


def test_there_are_as_many_as_the_tables_have() -> None:
    names = [f"c{number}" for number in range(SLOTS)]
    slots = CustomerSlots().change(names, lambda slot: False).slots
    assert slots.used == SLOTS
    with pytest.raises(NoSlot):
        slots.change([*names, "one-more"], lambda slot: True)
