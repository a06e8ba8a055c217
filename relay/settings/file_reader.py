"""Reads a settings file: a regular file, within a deadline, whatever the file system does.

A read from a network file system that hangs cannot be interrupted, and a thread stuck in one keeps the process's
descriptors, its listening sockets among them, beyond the end of the process. So a child process reads: it has no
descriptor of relay's, is killed when it is late, and nobody waits for its end. This file is also that child's program,
and so imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the child, which has no use for it, starts in half the time
    import subprocess

READ_SECONDS = 5.0  # for the whole file
KILL_SECONDS = 0.2  # seconds that a child which was late may take to end; one that is stuck in the kernel takes longer
MAX_FILE = 1 << 20  # bytes; a settings file is some kilobytes
OWN_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # paths that mean something else in another process
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# The first byte of what the child writes; the file comes after it, or what is wrong, for ever or at this moment.
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

    `absent`: it cannot be had at this moment, whatever is in it. Else its path names what is never a settings file.
    """

    def __init__(self, text: str, *, absent: bool = True) -> None:
        super().__init__(text)
        self.absent = absent


def read(path: Path) -> bytes:
    """Read a regular file in this process, MAX_FILE + 1 bytes of it at most. Raises Unreadable.

    Waits for the file system as long as that takes.
    """
    try:
        mode = path.stat().st_mode  # before it is opened: to open a fifo is to wait, and devices may act on it
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise Unreadable(f"is {kind}; name a regular file", absent=False)
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable((error.strerror or str(error)).lower()) from None


def read_apart(path: Path, seconds: float = READ_SECONDS) -> bytes:
    """Like `read`, in a child process that has `seconds` for it. Raises Unreadable.

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
    if child.returncode < 0:  # to read here might be to hang here
        raise Unreadable(f"the process that reads it was killed (signal {-child.returncode}); try again")
    return read(path)  # the child did not come that far


def _leave(child: subprocess.Popen[bytes]) -> None:
    """End the child if it still runs, and wait no longer than KILL_SECONDS for that."""
    import subprocess

    if child.stdout is not None:
        child.stdout.close()
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_SECONDS)


def _main(path: Path) -> None:
    """Write what the file has, or what is wrong with it, to standard output."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # nobody is left to read what this reads
    try:
        answer = READ + read(path)
    except Unreadable as error:
        answer = (ABSENT if error.absent else WRONG) + str(error).encode("utf-8", "replace")
    view = memoryview(answer)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
