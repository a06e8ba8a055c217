"""Count what may leak: an engine's records, and the descriptors of the process."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections import Counter
from pathlib import Path

from tests.engines.kinds import Kind
from tests.engines.running import DEADLINE


def descriptors() -> int:
    """How many descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def records(kind: Kind) -> Counter[str]:
    """How many objects of the engine's package are alive, by type."""
    gc.collect()
    return Counter(
        type(item).__name__ for item in gc.get_objects() if str(type(item).__module__).startswith(kind.package)
    )


def drop_queued(listener: socket.socket) -> None:
    """Accept and close every connection in a listener's queue."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
    listener.settimeout(DEADLINE)
