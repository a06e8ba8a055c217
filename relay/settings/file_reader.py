"""Reads a settings file, and the files that it includes, within a deadline, even if the file system hangs.

A read from a hung network file system cannot be interrupted, and a thread stuck in one keeps the process's descriptors,
listening sockets included, open beyond the end of the process. So a child process reads: it has none of relay's
descriptors, is killed when it is late, and nothing waits for it to end. This file is also the child's program, and so
imports the standard library only.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the child does not need it and starts in half the time without it
    import subprocess

READ_SECONDS = 5.0  # for the whole file
INCLUDED_SECONDS = 2.5  # for all files that it includes
KILL_SECONDS = 0.2  # longest wait for a killed child to end; one stuck in the kernel is left behind
MAX_FILE = 4 << 20  # bytes; a settings file has some kilobytes, and five thousand customers less than one megabyte
MAX_INCLUDED = 32 << 20  # bytes of all included files together
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


class Included(NamedTuple):
    """An included file, or a mistake in place of one.

    `name` is the file's, or the pattern's, as written in `include`. `mistake` is empty, or says why there is no
    content; `absent` is as in `Unreadable`.
    """

    name: str
    content: bytes
    mistake: str = ""
    absent: bool = False


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


def read_included(folder: Path, patterns: Sequence[str]) -> list[Included]:
    """Read the files that match the patterns, relative to `folder`, in this process.

    They come in the order of the patterns, and those of one pattern in the order of their names; each file once. Files
    whose name begins with a dot or ends in ~ do not match: editors and package managers leave such. Blocks without a
    deadline.
    """
    found: list[Included] = []
    seen: set[str] = set()
    left = MAX_INCLUDED
    for pattern in patterns:
        matches = glob.glob(pattern, root_dir=folder)  # noqa: PTH207 - Path.glob refuses `..` and absolute patterns
        names = [name for name in sorted(matches) if not _skipped(name)]
        if not names:
            found.append(Included(pattern, b"", "matches no file"))
        for name in names:
            if name in seen:
                continue
            seen.add(name)
            try:
                content = read(folder / name)
            except Unreadable as error:
                found.append(Included(name, b"", str(error), error.absent))
                continue
            left -= len(content)
            if left < 0:
                found.append(Included(name, b"", f"more than {MAX_INCLUDED} bytes with the files before it"))
                return found
            found.append(Included(name, content))
    return found


def _skipped(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") or last.endswith("~")


def read_apart(path: Path, seconds: float = READ_SECONDS) -> bytes:
    """Read a file as `read` does, in a child process that has `seconds` to do so. Raises Unreadable.

    Where no child can be started (no memory, an interpreter that this user may not execute), this process reads.
    """
    if str(path).startswith(OWN_DESCRIPTORS):
        return read(path)
    answer = _ask_child([str(path)], seconds)
    return read(path) if answer is None else answer


def read_included_apart(folder: Path, patterns: Sequence[str], seconds: float = INCLUDED_SECONDS) -> list[Included]:
    """Read included files as `read_included` does, in a child process as `read_apart` does. Raises Unreadable."""
    answer = _ask_child([str(folder), *patterns], seconds)
    return read_included(folder, patterns) if answer is None else _unpack(answer)


def _ask_child(arguments: list[str], seconds: float) -> bytes | None:
    """What a child process reads; None if it could not be started or failed before it could read. Raises Unreadable."""
    import subprocess

    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ValueError):  # ValueError: a pattern with a NUL
        return None
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
    return None


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Kill the child if it still runs, and wait at most KILL_SECONDS for it to end."""
    import subprocess

    if child.stdout is not None:
        child.stdout.close()
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_SECONDS)


def _pack(files: Sequence[Included]) -> bytes:
    """Included files as bytes: for each, the lengths of its parts in eight bytes each, and the parts."""
    packed: list[bytes] = []
    for name, content, mistake, absent in files:
        parts = (os.fsencode(name), content, mistake.encode("utf-8", "replace"), b"1" * absent)
        packed += [len(part).to_bytes(8) for part in parts]
        packed += parts
    return b"".join(packed)


def _unpack(data: bytes) -> list[Included]:
    found: list[Included] = []
    offset = 0
    while offset < len(data):
        parts: list[bytes] = []
        start = offset + 4 * 8
        for at in range(offset, start, 8):
            end = start + int.from_bytes(data[at : at + 8])
            parts.append(data[start:end])
            start = end
        offset = start
        name, content, mistake, absent = parts
        found.append(Included(os.fsdecode(name), content, mistake.decode(), bool(absent)))
    return found


def _main(path: Path, patterns: Sequence[str]) -> None:
    """Write the file's content, or that of the files that match the patterns, or the error message, to the output."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # without the parent the output has no reader
    try:
        answer = READ + (_pack(read_included(path, patterns)) if patterns else read(path))
    except Unreadable as error:
        answer = (ABSENT if error.absent else WRONG) + str(error).encode("utf-8", "replace")
    view = memoryview(answer)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
