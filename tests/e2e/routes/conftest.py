"""A hub by its two names, and the provisioning service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.routes.places import DEVICE, DPS, HUB, STORE, Places


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with Places(tmp_path, HUB, DEVICE, DPS, STORE) as running:
        yield running
