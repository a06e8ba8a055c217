"""Fixtures of the tests with published settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.settings_source.fetching import Fleet
from tests.support.metadata_server import MetadataServer
from tests.support.upstreams import Echo


@pytest.fixture
def fleet(tmp_path: Path, echo: Echo) -> Iterator[Fleet]:
    with MetadataServer() as metadata:
        yield Fleet(tmp_path, metadata, echo.address)
