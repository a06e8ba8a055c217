"""A name server on loopback, and a resolver that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.resolve import Resolver
from tests.unit.name_server import NameServer


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def resolver(server: NameServer, tmp_path: Path) -> Resolver:
    return Resolver([server.address], tmp_path / "hosts")
