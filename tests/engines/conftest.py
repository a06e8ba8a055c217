"""The conformance suite's fixtures: `lab` makes engines of the kind under test, and peers around them.

Every test file covers one promise of `relay.engines.contract`, and runs once per engine in `kinds.KINDS`. After each
test the engine is closed, and no exception may have reached its event loop.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines import peers
from tests.engines.kinds import KINDS, Kind
from tests.engines.lab import IPV4, IPV6, Lab


@pytest.fixture(params=KINDS.values(), ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    value = request.param
    assert isinstance(value, Kind)
    return value


@pytest.fixture
def lab(kind: Kind) -> Iterator[Lab]:
    laboratory = Lab(kind)
    yield laboratory
    laboratory.close()


@pytest.fixture(params=[IPV4, IPV6], ids=["ipv4", "ipv6"])
def host(request: pytest.FixtureRequest) -> str:
    """A loopback address of either family."""
    address = str(request.param)
    try:
        peers.listening(address).close()
    except OSError as error:
        pytest.skip(f"no loopback address {address}: {error.strerror}")
    return address
