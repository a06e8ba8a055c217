"""Ring engines as tests want them."""

from __future__ import annotations

from functools import partial

from relay.engines.ring.engine import RingEngine
from relay.engines.ring.pump import BUFFERS
from relay.engines.ring.selector import RingLoop
from tests.engines.kinds import Kind


def ring_kind(buffers: int = BUFFERS) -> Kind:
    """With multishot receives and so many buffers."""
    return Kind("ring", "relay.engines.ring", 131072, RingLoop, partial(RingEngine, buffers=buffers))
