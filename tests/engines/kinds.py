"""The engines that the suite runs against: how to make each one's event loop and the engine itself.

A line in KINDS adds an engine to the suite. Whatever a test knows of an engine beyond its contract is in its `Kind`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import uvloop

from relay.engines.contract import Engine, TcpOptions, Timeouts
from relay.engines.ring import kernels
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.selector import RingLoop
from relay.engines.stream import StreamEngine

HELD_BOUND = 262144  # most bytes that an engine may hold per connection, whatever the peers do


class MakeEngine(Protocol):
    """An engine's constructor."""

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        tcp: TcpOptions,
        *,
        report_source: bool,
        held_limit: int,
    ) -> Engine: ...


@dataclass(frozen=True)
class Kind:
    """One engine. Both makers are called in the thread that will run the loop."""

    name: str
    package: str  # package of its classes: `leaks.records` counts their objects
    held: int  # most bytes that it claims to hold per direction
    make_loop: Callable[[], asyncio.AbstractEventLoop]
    make_engine: MakeEngine


_STREAM = Kind("stream", "relay.engines.stream", 65536, uvloop.new_event_loop, StreamEngine)
_RING = Kind("ring", "relay.engines.ring", 131072, RingLoop, RingEngine)
# The ring engine for kernels whose multishot receive has no bound. On those kernels, as in the relay, only this one.
_SINGLE = Kind("ring-single", "relay.engines.ring", 131072, RingLoop, partial(RingEngine, multishot_receive=False))
_UNBOUNDED = kernels.UNBOUNDED_RECEIVE in kernels.faults(os.uname().release)

KINDS = {kind.name: kind for kind in ((_STREAM, _SINGLE) if _UNBOUNDED else (_STREAM, _RING, _SINGLE))}
