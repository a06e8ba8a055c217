"""Log lines leave the process without ever stopping its loop.

A loop hands lines to a `LogWriter`; a thread writes them. When nobody reads (a full pipe, a full disk, a stopped
journal), only the thread waits; the queue fills, further lines are dropped and counted. Which lines there are is not
decided here.

Where a descriptor leads straight to systemd's journal, each line begins with its priority, "<6>", as sd-daemon(3) has
it: the journal takes that off and files the line under it. Anywhere else it would only be in the way.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import TextIO

QUEUE = 10_000  # lines; at some 350 bytes each 3.5 MB
# write(2) to a pipe is atomic up to PIPE_BUF (4096, pipe(7)): several processes share one, and their lines must not
# mix. To a file, each write is.
CHUNK, CHUNK_OF_FILE = 4096, 65536  # bytes
GATHER = 0.01  # seconds that the thread waits for more lines before it writes: fewer wake-ups under load

# syslog(3)'s priorities, of those what relay says.
CRITICAL, ERROR, WARNING, INFO, DEBUG = 2, 3, 4, 6, 7
NEWLINE = "\n"  # the only character that ends a line for the journal; str.splitlines knows ten more


class LogWriter:
    """Writes lines to a descriptor, in order. `write` never waits; `dropped` counts the lines that were lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._chunk = CHUNK_OF_FILE if _is_file(descriptor) else CHUNK
        self._journal = is_journal(descriptor)
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._queued = 0  # written by the loop
        self._handled = 0  # written by the thread
        self._lost = 0  # by the thread: the disk is full, the reader is gone
        self._refused = 0  # by the loop: the queue is full
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._lost + self._refused

    def write(self, line: str, priority: int = INFO) -> None:
        """Queue one line, its newline included; or several that belong together, as a traceback's."""
        if len(self._lines) >= QUEUE:
            self._refused += 1
            return
        self._lines.append(prefixed(line, priority) if self._journal else line)
        self._queued += 1
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, seconds: float) -> None:
        """Wait until what is queued was written, at most so long. For the end of a process: it does wait."""
        deadline = time.monotonic() + seconds
        while self._handled != self._queued and time.monotonic() < deadline:
            time.sleep(0.002)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(GATHER)
            self._wake.clear()
            while self._lines:
                try:
                    self._write_some()
                except Exception:  # noqa: BLE001 -- without this thread there is no log at all
                    traceback.print_exc()  # what is left is standard error
                    self._lost += 1
                    self._handled += 1
                    if self._lines:
                        self._lines.popleft()  # lest the same line does it again

    def _write_some(self) -> None:
        chunk, count = self._take()
        if not self._write_all(chunk):
            self._lost += count
        self._handled += count

    def _take(self) -> tuple[bytes, int]:
        """Whole lines of at most a chunk together, at least one line."""
        taken: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines[0].encode("utf-8", "backslashreplace")
            if taken and size + len(line) > self._chunk:
                break
            self._lines.popleft()
            taken.append(line)
            size += len(line)
        return b"".join(taken), len(taken)

    def _write_all(self, data: bytes) -> bool:
        """False if it could not be written (ENOSPC, EPIPE, EIO, …)."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Somebody made the shared descriptor non-blocking. poll(2), for select(2) takes none from 1,024 on.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(1000)  # milliseconds
            except OSError:
                return False
        return True


def is_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd has connected the descriptor to its journal.

    JOURNAL_STREAM has the device and the inode of that connection (systemd.exec(5)). A process that was started with
    its output elsewhere may have inherited the variable, so the two are compared with the descriptor's own.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False  # closed, or no such variable


def prefixed(text: str, priority: int) -> str:
    """The lines of `text`, each with its priority: the journal files each line for itself."""
    mark = f"<{priority}>"
    return f"{mark}{text[:-1].replace(NEWLINE, NEWLINE + mark)}{text[-1:]}"


class _Prefixing(io.TextIOBase):
    """A text stream that gives each line its priority, and is otherwise the stream that it stands before."""

    def __init__(self, stream: TextIO, priority: int) -> None:
        self._stream = stream
        self._priority = priority
        self._begins = True  # what is written next is the beginning of a line

    def write(self, text: str) -> int:
        if text:
            marked = prefixed(text, self._priority)
            self._stream.write(marked if self._begins else marked[len(f"<{self._priority}>") :])
            self._begins = text.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


def mark_output() -> None:
    """Give what is printed its priority where it goes to the journal: info, and error on standard error.

    For what does not come through a `LogWriter`: mistakes in the settings, a command's answer, the traceback of an
    exception that nobody caught.
    """
    if sys.stdout is not None and is_journal(1):
        sys.stdout = _Prefixing(sys.stdout, INFO)
    if sys.stderr is not None and is_journal(2):
        sys.stderr = _Prefixing(sys.stderr, ERROR)


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # closed: every line will be lost, and counted


def timestamp(seconds: float) -> str:
    """UTC, RFC 3339, milliseconds."""
    whole = int(seconds)
    return f"{_to_the_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _to_the_second(whole: int) -> str:
    """The part that all lines of one second share."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def local_timestamp(seconds: float) -> str:
    """For people: the time where this runs, milliseconds, and its offset from UTC, "2026-11-24 03:19:10.925 +0100"."""
    whole = int(seconds)
    before, offset = _local_second(whole)
    return f"{before}.{int((seconds - whole) * 1000):03d} {offset}"


@lru_cache(maxsize=2)
def _local_second(whole: int) -> tuple[str, str]:
    local = time.localtime(whole)
    return time.strftime("%Y-%m-%d %H:%M:%S", local), time.strftime("%z", local)
