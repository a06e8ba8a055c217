"""Kernel faults that the ring engine works around and that its self-test cannot detect.

A fault that shows only under load, or a missing bound, passes any test at start. Each entry names the report or the
change that fixed it. The multishot accept, which returned descriptors that were not open on 6.6 to 6.8 (liburing issue
1062), has no entry, since the engine uses it on no kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (6, 1)  # IORING_SETUP_DEFER_TASKRUN


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the kernels from `first` on, up to but not including `fixed`."""

    first: tuple[int, int]
    fixed: tuple[int, int]
    what: str
    instead: str
    source: str


UNBOUNDED_RECEIVE = Fault(
    (6, 0),
    (6, 8),
    "a multishot receive takes everything that a fast sender has, without a pause",
    "receives are armed one by one",
    "liburing issues 1043 and 758; fixed by MULTISHOT_MAX_RETRY in io_uring/net.c, Linux 6.8",
)
FAULTS = (UNBOUNDED_RECEIVE,)


def version(release: str) -> tuple[int, int]:
    """Major and minor version of a release as uname(2) gives it; (0, 0) if it does not look like a version."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def faults(release: str) -> tuple[Fault, ...]:
    """The known faults of the kernel with this release."""
    return tuple(fault for fault in FAULTS if fault.first <= version(release) < fault.fixed)
