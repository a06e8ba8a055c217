"""Anonymous files that processes share, memfd_create(2): of a fixed size, and never executable.

A process that maps a file is killed by SIGBUS when it accesses a page that another process has truncated. So the files
are sealed (F_ADD_SEALS, fcntl(2)): no process can resize them, whatever descriptors it has, and seals cannot be
removed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

# linux/memfd.h, since 6.3; implies MFD_ALLOW_SEALING. With vm.memfd_noexec = 2 the kernel makes no memfd without it.
MFD_NOEXEC_SEAL = 0x0008
SIZE_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def shared(name: str, size: int) -> int:
    """Make a file of `size` zero bytes, writable but of fixed size. Returns its descriptor. Raises OSError."""
    descriptor = _create(name)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_FIXED)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_only(name: str, content: bytes) -> int:
    """Make a file with this content, which no process can change. Returns its descriptor. Raises OSError."""
    descriptor = _create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_FIXED | fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mapped(descriptor: int) -> memoryview:
    """Map a file of `read_only` and close the descriptor; the mapping ends with the last reference to the bytes."""
    try:
        return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


def _create(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
