"""Fixtures of the tests of the templates, and their time limit."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A prediction takes half a second, and many times that on a busy machine; a test may need several."""
    for item in items:
        if "tests/bicep/" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(240))
