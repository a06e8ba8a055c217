"""Why the kernel refuses a ring, with the remedy."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import NamedTuple

# One word for each cause; docs/metrics.md explains them.
KERNEL_TOO_OLD, NOT_IN_KERNEL, SYSCTL, SECCOMP = "kernel_too_old", "not_in_kernel", "sysctl", "seccomp"
MEMLOCK, SELF_TEST_FAILED, OTHER = "memlock", "self_test_failed", "other"

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")


class Cause(NamedTuple):
    """Why there is no ring: a word from the fixed list for metrics, and a sentence with the remedy for people."""

    word: str
    text: str


def cause(error: OSError) -> Cause:
    """Why the kernel refuses a ring, and what to do about it."""
    text = error.strerror or str(error)
    if error.errno == errno.ENOSYS:
        return Cause(
            NOT_IN_KERNEL,
            f"{text}: this kernel has no io_uring, or a seccomp profile hides it (see security_opt, --security-opt)",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        level = _disabled_level()
        if level == "2":
            return Cause(
                SYSCTL, f"{text}: kernel.io_uring_disabled is 2; `sysctl kernel.io_uring_disabled=0` allows it"
            )
        if level == "1":
            return Cause(
                SYSCTL,
                f"{text}: kernel.io_uring_disabled is 1, which wants CAP_SYS_ADMIN or the group in "
                "kernel.io_uring_group; `sysctl kernel.io_uring_disabled=0` allows it to all",
            )
        return Cause(
            SECCOMP,
            f"{text}: a seccomp profile refuses it (Docker's and containerd's default do); run with a profile that "
            "allows io_uring_setup, io_uring_enter and io_uring_register",
        )
    if error.errno == errno.ENOMEM:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return Cause(
            MEMLOCK, f"{text}: RLIMIT_MEMLOCK is {limit} bytes; raise LimitMEMLOCK (systemd) or `ulimit -l` to 8 MiB"
        )
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return Cause(NOT_IN_KERNEL, f"{text}: this kernel does not know what the ring needs")
    return Cause(OTHER, text)


def _disabled_level() -> str:
    """The value of kernel.io_uring_disabled; empty where there is no such sysctl."""
    try:
        return DISABLED.read_text().strip()
    except OSError:
        return ""
