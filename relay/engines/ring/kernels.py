"""What the ring engine avoids on which kernels. The self-test has the last word; this table knows what it cannot see.

A fault that shows itself only under load, or a missing bound, passes any test at start. Each entry says where it was
reported or which change ended it. Not here, since the engine does without it on all kernels: the multishot accept,
which returned descriptors that were not open on 6.6 to 6.8 (liburing issue 1062).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (6, 1)  # IORING_SETUP_DEFER_TASKRUN


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the kernels from `first` on, up to but not including `mended`."""

    first: tuple[int, int]
    mended: tuple[int, int]
    what: str
    instead: str
    source: str


UNBOUNDED_RECEIVE = Fault(
    (6, 0),
    (6, 8),
    "a multishot receive takes everything that a fast sender has, without a pause",
    "receives are armed one by one",
    "liburing issues 1043 and 758; ended by MULTISHOT_MAX_RETRY in io_uring/net.c, Linux 6.8",
)
FAULTS = (UNBOUNDED_RECEIVE,)


def version(release: str) -> tuple[int, int]:
    """Major and minor of what uname(2) calls the release; (0, 0) if it does not look like a version."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def faults(release: str) -> tuple[Fault, ...]:
    """The known faults of that kernel."""
    return tuple(fault for fault in FAULTS if fault.first <= version(release) < fault.mended)
