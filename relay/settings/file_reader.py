"""Reads a settings file within a deadline, even if the file system hangs.

A read from a hung network file system cannot be interrupted, and a thread stuck in one keeps the process's descriptors,
listening sockets included, open beyond the end of the process. So a child process reads: it has none of relay's
descriptors, is killed when it is late, and nothing waits for it to end. This file is also the child's program, and so
imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the child does not need it and starts in half the time without it
    import subprocess

READ_SECONDS = 5.0  # for the whole file
KILL_SECONDS = 0.2  # longest wait for a killed child to end; one stuck in the kernel is left behind
MAX_FILE = 1 << 20  # bytes; a settings file has some kilobytes
OWN_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # these paths mean another file in another process
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# The first byte of the child's output. READ: the file's content follows. WRONG, ABSENT: an error message follows, for
# a path that is never a settings file, or one that cannot be read at this moment.
READ, WRONG, ABSENT = b"=", b"?", b"!"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe (a fifo, or what a shell makes of `… |` and `<(…)`), which a reload could not read again"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class Unreadable(Exception):
    """A file that cannot be read; the text says why.

    `absent`: it cannot be read at this moment; a retry may succeed. Else the path is never a settings file (a
    directory, a device).
    """

    def __init__(self, text: str, *, absent: bool = True) -> None:
        super().__init__(text)
        self.absent = absent


def read(path: Path) -> bytes:
    """Read a regular file in this process, at most MAX_FILE + 1 bytes. Raises Unreadable. Blocks without a deadline."""
    try:
        mode = path.stat().st_mode  # before open(), which blocks on a fifo and may act on a device
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise Unreadable(f"is {kind}; name a regular file", absent=False)
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable((error.strerror or str(error)).lower()) from None


def read_apart(path: Path, seconds: float = READ_SECONDS) -> bytes:
    """Read a file as `read` does, in a child process that has `seconds` to do so. Raises Unreadable.

    Where no child can be started (no memory, an interpreter that this user may not execute), this process reads.
    """
    import subprocess

    if str(path).startswith(OWN_DESCRIPTORS):
        return read(path)
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return read(path)
    try:
        answer, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"not read within {seconds:g} s; the file system does not answer") from None
    finally:
        _leave(child)
    if answer[:1] == READ:
        return answer[1:]
    if answer[:1] in (WRONG, ABSENT):
        raise Unreadable(answer[1:].decode("utf-8", "replace"), absent=answer[:1] == ABSENT)
    if child.returncode < 0:  # no fallback: reading here might hang this process
        raise Unreadable(f"the process that reads it was killed (signal {-child.returncode}); try again")
    return read(path)  # the child failed before it could read


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Kill the child if it still runs, and wait at most KILL_SECONDS for it to end."""
    import subprocess

    if child.stdout is not None:
        child.stdout.close()
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_SECONDS)


def _main(path: Path) -> None:
    """Write the file's content, or the error message, to standard output."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # without the parent the output has no reader
    try:
        answer = READ + read(path)
    except Unreadable as error:
        answer = (ABSENT if error.absent else WRONG) + str(error).encode("utf-8", "replace")
    view = memoryview(answer)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
