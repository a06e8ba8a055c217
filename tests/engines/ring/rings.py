"""Ring engines for tests."""

from __future__ import annotations

from functools import partial

from relay.engines.ring.engine import RingEngine
from relay.engines.ring.pump import BUFFERS
from relay.engines.ring.selector import RingLoop
from tests.engines.kinds import Kind


def ring_kind(buffers: int = BUFFERS) -> Kind:
    """A ring engine with multishot receives and `buffers` buffers."""
    return Kind("ring", "relay.engines.ring", 131072, RingLoop, partial(RingEngine, buffers=buffers))
