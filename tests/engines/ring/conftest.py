"""These tests are about the ring alone: where there is none to be had they are skipped, with the cause."""

from __future__ import annotations

import pytest

from relay.engines.ring.selector import RingSelector
from relay.engines.ring.selftest import explain


@pytest.fixture(scope="session", autouse=True)
def ring() -> None:
    try:
        RingSelector().close()
    except OSError as error:
        pytest.skip(f"no io_uring: {explain(error)}")
