"""Fixtures of the tests that observe a real relay: a way to start one, and an echo behind it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.engines.choice import choose
from tests.support.harness import Relay, Start
from tests.support.upstreams import Echo

MANY = 8192


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> Iterator[None]:
    """Crowds of clients and the echo behind the relay are all in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MANY)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture(params=["stream", "ring"])
def engine(request: pytest.FixtureRequest) -> str:
    """Every behaviour is the same on both engines."""
    name = str(request.param)
    if problem := choose(name, 1).problem if name == "ring" else "":
        pytest.skip(f"no ring engine here: {problem}")
    return name


@pytest.fixture
def start(tmp_path: Path, engine: str) -> Iterator[Start]:
    """Starts relays; each one that still runs is ended after the test, and the accounts of each are checked."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start_one(toml: str, **options: Any) -> Relay:
            nonlocal count
            count += 1
            directory = tmp_path / f"relay{count}"
            directory.mkdir()
            # Nothing looks whether a test's relay is ready, that a drain would have to be announced to.
            environ = {"RELAY_ENGINE": engine, "RELAY_DRAIN__ANNOUNCE": "0.0", **options.pop("environ", {})}
            return stack.enter_context(Relay(directory, toml, environ=environ, **options))

        yield start_one
