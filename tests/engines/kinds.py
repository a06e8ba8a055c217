"""The engines that the suite runs against: how to make each one's event loop and the engine itself.

An engine joins the suite by a line in KINDS. What a test may know of an engine beyond its contract is in its
`Kind`, and nowhere else.
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

HELD_BOUND = 262144  # bytes per connection that no engine may hold more than, whatever the peers do


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
    package: str  # where its classes are: what it keeps per connection is looked for there
    held: int  # bytes that it says to hold at most per direction
    make_loop: Callable[[], asyncio.AbstractEventLoop]
    make_engine: MakeEngine


_STREAM = Kind("stream", "relay.engines.stream", 65536, uvloop.new_event_loop, StreamEngine)
_RING = Kind("ring", "relay.engines.ring", 131072, RingLoop, RingEngine)
# What it does on kernels whose multishot receive knows no bound; there only that, as the relay itself.
_SINGLE = Kind("ring-single", "relay.engines.ring", 131072, RingLoop, partial(RingEngine, multishot_receive=False))
_UNBOUNDED = kernels.UNBOUNDED_RECEIVE in kernels.faults(os.uname().release)

KINDS = {kind.name: kind for kind in ((_STREAM, _SINGLE) if _UNBOUNDED else (_STREAM, _RING, _SINGLE))}
