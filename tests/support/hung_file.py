"""A regular file that nobody can open for a while, as on a network file system whose server does not answer."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hung(path: Path) -> Iterator[None]:
    """Hold a write lease: open(2) by another process waits for its end (fcntl_locking(2), "Leases"), up to 45 s.

    That is /proc/sys/fs/lease-break-time. Raises OSError on a file system without leases.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel says that somebody waits
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
