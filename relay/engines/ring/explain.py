"""Why the kernel refuses a ring, in words that say what to do about it."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")


def explain(error: OSError) -> str:
    """Why the kernel refuses a ring, and what to do about it."""
    text = error.strerror or str(error)
    if error.errno == errno.ENOSYS:
        return f"{text}: this kernel has no io_uring, or a seccomp profile hides it (see security_opt, --security-opt)"
    if error.errno in (errno.EPERM, errno.EACCES):
        level = _disabled()
        if level == "2":
            return f"{text}: kernel.io_uring_disabled is 2; `sysctl kernel.io_uring_disabled=0` allows it"
        if level == "1":
            return (
                f"{text}: kernel.io_uring_disabled is 1, which wants CAP_SYS_ADMIN or the group in "
                "kernel.io_uring_group; `sysctl kernel.io_uring_disabled=0` allows it to all"
            )
        return (
            f"{text}: a seccomp profile refuses it (Docker's and containerd's default do); run with a profile that "
            "allows io_uring_setup, io_uring_enter and io_uring_register"
        )
    if error.errno == errno.ENOMEM:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return f"{text}: RLIMIT_MEMLOCK is {limit} bytes; raise LimitMEMLOCK (systemd) or `ulimit -l` to 8 MiB"
    if error.errno == errno.EINVAL:
        return f"{text}: this kernel does not know what the ring needs"
    return text


def _disabled() -> str:
    try:
        return DISABLED.read_text().strip()
    except OSError:
        return ""
