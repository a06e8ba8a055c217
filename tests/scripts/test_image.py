"""scripts/image.py: the gallery's version of a version of relay, and the order of the scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.image import Refused, gallery_version, scripts

PARTS = st.integers(0, (1 << 31) - 1)


@given(PARTS, PARTS, PARTS)
def test_a_release_keeps_its_version(major: int, minor: int, patch: int) -> None:
    assert gallery_version(f"{major}.{minor}.{patch}") == f"{major}.{minor}.{patch}"


@pytest.mark.parametrize(
    "text", ["1.0.0rc1", "1.0.0a1", "1.0.0.dev3", "1.0", "1.0.0.0", "1.0.0+local", "01.0.0", "", "1.0.0\n", "1.٣.0"]
)
def test_what_is_no_release_is_refused_and_named(text: str) -> None:
    with pytest.raises(Refused, match="three integers") as raised:
        gallery_version(text)
    assert f"version {text}:" in str(raised.value)


def test_an_integer_that_a_gallery_cannot_hold_is_refused() -> None:
    with pytest.raises(Refused, match="up to 2147483647"):
        gallery_version(f"1.0.{1 << 31}")


def test_the_scripts_run_in_the_order_of_their_numbers_and_clean_up_last() -> None:
    names = [path.name for path in scripts()]
    assert names == sorted(names)
    assert len({name[:2] for name in names}) == len(names)
    assert names[-1] == "90-clean-up.sh"
    assert [path.name for path in scripts(["20", "90"])] == ["20-relay.sh", "90-clean-up.sh"]
