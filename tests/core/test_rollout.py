"""Which machines take new settings first: an even part, never fewer with a greater percentage, others each time."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from relay.core.rollout import held_back, is_partial, place
from relay.core.user_data import Source

FLEET = [str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128))) for number in range(2000)]
PERCENT = st.floats(0, 100)


def takers(source: Source, salt: str) -> set[str]:
    return {machine for machine in FLEET if not held_back(source, machine, {}, salt)}


@given(st.text(), st.text())
def test_a_place_is_from_0_to_100_and_the_same_each_time(machine: str, salt: str) -> None:
    assert 0 <= place(machine, salt) < 100
    assert place(machine, salt) == place(machine, salt)


@given(st.uuids().map(str), st.text(), PERCENT, PERCENT)
def test_a_greater_percentage_removes_nobody(machine: str, salt: str, one: float, other: float) -> None:
    least, most = sorted((one, other))
    if not held_back(Source(percentage=least), machine, {}, salt):
        assert not held_back(Source(percentage=most), machine, {}, salt)


@given(st.uuids().map(str), st.text())
def test_nobody_and_everybody(machine: str, salt: str) -> None:
    assert held_back(Source(percentage=0), machine, {}, salt)
    assert not held_back(Source(percentage=100), machine, {}, salt)
    assert not held_back(Source(), machine, {}, salt)


def test_a_tenth_is_a_tenth() -> None:
    for salt in ("a", "b", "c"):
        assert 150 < len(takers(Source(percentage=10), salt)) < 250  # 200 of 2,000; 3.7 standard deviations


def test_other_settings_have_other_machines_first_unless_a_salt_is_given() -> None:
    one, other = takers(Source(percentage=10), "a"), takers(Source(percentage=10), "b")
    assert len(one & other) < 60  # 20, if they are independent
    fixed = Source(percentage=10, salt="mine")
    assert takers(fixed, "a") == takers(fixed, "b")


def test_the_spelling_of_an_id_does_not_matter() -> None:
    source = Source(percentage=50)
    assert all(held_back(source, one, {}, "s") == held_back(source, one.upper(), {}, "s") for one in FLEET[:100])


def test_a_canary_takes_them_and_the_others_do_not() -> None:
    source = Source(canary_tag="ring:canary")
    assert not held_back(source, FLEET[0], {"ring": "canary", "owner": "iot"}, "s")
    assert "no tag ring:canary" in held_back(source, FLEET[0], {"ring": "canaries"}, "s")
    assert len(takers(Source(percentage=50, canary_tag="ring:canary"), "s")) > 900
    assert not held_back(Source(canary_tag="path:a:b"), FLEET[0], {"path": "a:b"}, "s")


def test_what_is_partial() -> None:
    assert not is_partial(Source())
    assert not is_partial(Source(percentage=100))
    assert is_partial(Source(percentage=99.9))
    assert is_partial(Source(canary_tag="a:b"))
    assert not is_partial(Source(canary_tag="a:b", percentage=100))
