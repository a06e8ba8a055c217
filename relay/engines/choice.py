"""Which engine runs here, and how each one's event loop and engine are made."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from functools import lru_cache
from typing import NamedTuple

from relay.engines.contract import Engine, TcpOptions, Timeouts

ATTEMPTS, PAUSE = 20, 0.1  # seconds; to make a ring while an earlier one is being freed

# Words for why it is this engine; those for why it is not the ring are `ring.explain`'s.
AS_SET, SELF_TEST_PASSED = "as_set", "self_test_passed"


class Choice(NamedTuple):
    """An engine's name and why it is the one, for people and in one of few words (docs/metrics.md has all of them).

    `problem` says why the ring is not to be had, though it was asked for.
    """

    name: str
    reason: str
    word: str
    problem: str = ""


def choose(wanted: str, workers: int) -> Choice:
    """The engine for the setting `engine` (auto, ring or stream) and that many workers.

    Tries io_uring where it may be used (`ring.selftest`), with a ring for each worker.
    """
    if wanted == "stream":
        return Choice("stream", "engine = stream", AS_SET)
    return _try_ring(workers)


@lru_cache(maxsize=1)
def _try_ring(workers: int) -> Choice:
    from relay.engines.ring import kernels, selftest  # ctypes and what comes with it, where it is wanted only

    release = os.uname().release
    try:
        seconds = selftest.run(release, workers)
    except selftest.Failed as error:
        return Choice("stream", f"no io_uring: {error}", error.word, problem=str(error))
    avoided = "".join(f"; {fault.instead}, as {fault.what}" for fault in kernels.faults(release))
    reason = f"io_uring on Linux {release}, self-test passed in {seconds:.2f} s{avoided}"
    return Choice("ring", reason, SELF_TEST_PASSED)


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    """The event loop of that engine. Raises OSError if the ring is not to be had."""
    if name == "ring":
        from relay.engines.ring.selector import RingLoop

        for _ in range(ATTEMPTS):
            try:
                return RingLoop()
            except OSError as error:
                # The kernel frees a ring some time after its process has ended, and until then counts its memory.
                if error.errno != errno.ENOMEM:
                    raise
                time.sleep(PAUSE)
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
