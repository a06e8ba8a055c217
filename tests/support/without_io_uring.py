"""Runs a command with io_uring refused, as by a container's seccomp profile.

    python -m tests.support.without_io_uring ERRNO COMMAND …

A seccomp filter (seccomp(2), prctl(2) PR_SET_SECCOMP) answers io_uring_setup with that errno; everything else is
allowed. All descendants of the command inherit the filter, and none can remove it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
BPF_LD_W_ABS, BPF_JEQ_K, BPF_RET_K = 0x20, 0x15, 0x06
SYS_io_uring_setup = 425


def refuse_io_uring(number: int) -> None:
    """Install the filter in this process. Raises OSError."""
    # struct sock_filter {code u16, jt u8, jf u8, k u32}; the first word of seccomp_data is the system call's number.
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (BPF_LD_W_ABS, 0, 0, 0),
            (BPF_JEQ_K, 0, 1, SYS_io_uring_setup),
            (BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | number),
            (BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog {len u16, filter pointer}
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(fprog))):
        if libc.prctl(*arguments, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse_io_uring(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
