"""Fixtures for tests of the ring alone. Where the kernel refuses a ring they are skipped, with the cause."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from relay.engines.ring.selector import RingLoop, RingSelector
from relay.engines.ring.unavailable import cause
from tests.engines.ring.traffic import Pair
from tests.support.observe import PATIENCE


@pytest.fixture(scope="session", autouse=True)
def ring() -> None:
    try:
        RingSelector().close()
    except OSError as error:
        pytest.skip(f"no io_uring: {cause(error).text}")


@pytest.fixture
def selector() -> Iterator[RingSelector]:
    with contextlib.closing(RingSelector()) as made:
        yield made


@pytest.fixture
def loop() -> Iterator[RingLoop]:
    with contextlib.closing(RingLoop()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(PATIENCE)
        yield near, far
