"""CPython's test cases for a selector (`test.test_selectors`), on the ring's: all of them, none left out."""

from __future__ import annotations

import pytest

from tests.engines.ring import cpython_cases as cpython

if not cpython.installed():
    pytest.skip(cpython.MISSING, allow_module_level=True)

NAMES = tuple(
    f"{name}.{case}" for name, cls in cpython.classes(cpython.SELECTORS).items() for case in cpython.cases(cls)
)


@pytest.mark.parametrize("name", NAMES)
def test_case_of_cpython_passes(name: str) -> None:
    cpython.check(cpython.SELECTORS, NAMES, name)


def test_the_cases_wait_in_the_ring() -> None:
    assert cpython.turns(cpython.SELECTORS, NAMES, cpython.SELECTOR_CLASS)
