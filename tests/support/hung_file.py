"""A regular file whose open(2) blocks, as on a network file system whose server does not answer."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hung(path: Path) -> Iterator[None]:
    """Hold a write lease: open(2) by another process blocks until it is released (fcntl_locking(2), "Leases").

    It blocks for 45 s at most, /proc/sys/fs/lease-break-time. Raises OSError on a file system without leases.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel reports a blocked open
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
