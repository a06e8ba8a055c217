"""Anonymous files that processes share, memfd_create(2): of one size for ever, and never executable.

Whoever maps a file that another process truncates is killed by SIGBUS at its next look. So what is mapped is sealed,
F_ADD_SEALS in fcntl(2): it neither shrinks nor grows, whoever has its descriptor, and nobody can take the seals off.
"""

from __future__ import annotations

import errno
import fcntl
import os

# linux/memfd.h, since 6.3; implies MFD_ALLOW_SEALING. Where vm.memfd_noexec is 2, the kernel makes no other file.
MFD_NOEXEC_SEAL = 0x0008
SIZE_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def shared(name: str, size: int) -> int:
    """The descriptor of a file of `size` zero bytes, for all to write and for none to resize. Raises OSError."""
    descriptor = _create(name)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_FIXED)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_only(name: str, content: bytes) -> int:
    """The descriptor of a file with this content, which nobody can change. Raises OSError."""
    descriptor = _create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_FIXED | fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _create(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
