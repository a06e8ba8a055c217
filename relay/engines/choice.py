"""Choose the engine for this machine, and make its event loop and the engine itself."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from functools import lru_cache
from typing import NamedTuple

from relay.engines.contract import Engine, TcpOptions, Timeouts

RING_ATTEMPTS = 20  # tries to make a ring while the kernel is still freeing an earlier one
RING_RETRY_PAUSE = 0.1  # seconds between them

# `Choice.word` of an engine that was chosen; the words for why the ring was not are in `ring.unavailable`.
AS_SET, SELF_TEST_PASSED = "as_set", "self_test_passed"


class Choice(NamedTuple):
    """The chosen engine, and the reason."""

    name: str
    reason: str  # for people
    word: str  # for metrics: one of the fixed words listed in docs/metrics.md
    problem: str = ""  # why the ring is unavailable, if it was wanted


def choose(wanted: str, workers: int) -> Choice:
    """Choose the engine for the setting `engine` (auto, ring or stream) and the number of workers.

    Unless `stream` is wanted, this runs io_uring's self-test (`ring.selftest`), with one ring per worker.
    """
    if wanted == "stream":
        return Choice("stream", "engine = stream", AS_SET)
    return _try_ring(workers)


@lru_cache(maxsize=1)
def _try_ring(workers: int) -> Choice:
    from relay.engines.ring import kernels, selftest  # loads ctypes: only where the ring is wanted

    release = os.uname().release
    try:
        seconds = selftest.run(release, workers)
    except selftest.Failed as error:
        return Choice("stream", f"no io_uring: {error}", error.word, problem=str(error))
    avoided = "".join(f"; {fault.instead}, as {fault.what}" for fault in kernels.faults(release))
    reason = f"io_uring on Linux {release}, self-test passed in {seconds:.2f} s{avoided}"
    return Choice("ring", reason, SELF_TEST_PASSED)


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    """Make the event loop of an engine. Raises OSError if the ring is unavailable."""
    if name == "ring":
        from relay.engines.ring.selector import RingLoop

        for _ in range(RING_ATTEMPTS):
            try:
                return RingLoop()
            except OSError as error:
                # The kernel frees a ring some time after its process has ended, and counts its memory until then.
                if error.errno != errno.ENOMEM:
                    raise
                time.sleep(RING_RETRY_PAUSE)
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
    """Make an engine on its loop. `report_source`: report the upstream socket's local address with CONNECTED."""
    if name == "ring":
        from relay.engines.ring import kernels
        from relay.engines.ring.engine import RingEngine

        faults = kernels.faults(os.uname().release)
        return RingEngine(
            loop,
            timeouts,
            tcp,
            report_source=report_source,
            held_limit=held_limit,
            multishot_receive=kernels.UNBOUNDED_RECEIVE not in faults,
        )
    from relay.engines.stream import StreamEngine

    return StreamEngine(loop, timeouts, tcp, report_source=report_source, held_limit=held_limit)
