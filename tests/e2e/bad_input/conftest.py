"""What must hold after everything that a bad peer does: nothing is left of it, and the next connection works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.clients import echoes
from tests.support.harness import Relay
from tests.support.observe import wait_until

Unharmed = Callable[..., contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _unharmed(relay: Relay, listener: str = "main") -> Iterator[None]:
    """After the block: no connection left, as many descriptors as before it, and `listener`, an echo, serves."""
    before = sorted(relay.descriptors().values())
    yield
    relay.wait_active(0)
    wait_until(
        lambda: sorted(relay.descriptors().values()) == before,
        what=lambda: f"descriptors {before} as before, now {relay.descriptors()}",
    )
    assert relay.status()["connections"]["admitted"] == 0
    assert echoes(relay.address(listener))


@pytest.fixture
def unharmed() -> Unharmed:
    return _unharmed
