"""Which engine runs here, and how each one's event loop and engine are made."""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from typing import NamedTuple

from relay.engines.contract import Engine, TcpOptions, Timeouts


class Choice(NamedTuple):
    """An engine's name and why it is the one; `problem` says why the ring is not to be had, though it was asked for."""

    name: str
    reason: str
    problem: str = ""


def choose(wanted: str) -> Choice:
    """The engine for the setting `engine`: auto, ring or stream. Tries io_uring where it may be used (`selftest`)."""
    if wanted == "stream":
        return Choice("stream", "engine = stream")
    return _try_ring()


@lru_cache(maxsize=1)
def _try_ring() -> Choice:
    from relay.engines.ring import kernels, selftest  # ctypes and what comes with it, where it is wanted only

    release = os.uname().release
    try:
        seconds = selftest.run(release)
    except selftest.Failed as error:
        return Choice("stream", f"no io_uring: {error}", problem=str(error))
    avoided = "".join(f"; {fault.instead}, as {fault.what}" for fault in kernels.faults(release))
    return Choice("ring", f"io_uring on Linux {release}, self-test passed in {seconds:.2f} s{avoided}")


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    """The event loop of that engine. Raises OSError if the ring is not to be had."""
    if name == "ring":
        from relay.engines.ring.selector import RingLoop

        return RingLoop()
    import uvloop

    return uvloop.new_event_loop()


def make_engine(
    name: str,
    loop: asyncio.AbstractEventLoop,
    timeouts: Timeouts,
    tcp: TcpOptions,
    *,
    report_source: bool,
    held_limit: int,
) -> Engine:
    """That engine on its loop. `report_source`: whether handlers need that address."""
    if name == "ring":
        from relay.engines.ring import kernels
        from relay.engines.ring.engine import RingEngine

        found = kernels.faults(os.uname().release)
        return RingEngine(
            loop,
            timeouts,
            tcp,
            report_source=report_source,
            held_limit=held_limit,
            multishot_receive=kernels.UNBOUNDED_RECEIVE not in found,
        )
    from relay.engines.stream import StreamEngine

    return StreamEngine(loop, timeouts, tcp, report_source=report_source, held_limit=held_limit)
