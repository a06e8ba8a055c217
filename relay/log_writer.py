"""The log writer: writes log lines to a descriptor without ever blocking the event loop.

The loop queues lines in a `LogWriter`, and a thread writes them. When they are not taken (a full pipe, a full disk, a
stopped journal), only the thread waits; the queue fills, and further lines are dropped and counted. The content of the
lines is decided elsewhere.

If the descriptor is connected to systemd's journal, each line begins with its priority, such as "<6>" (sd-daemon(3)).
The journal strips it and stores the line with that priority. No other destination gets it.
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

QUEUE = 10_000  # lines; 3.5 MB at about 350 bytes each
# Several processes share one output, and their lines must not mix. write(2) to a pipe is atomic up to PIPE_BUF (4096,
# pipe(7)); to a file, each write is.
CHUNK, CHUNK_OF_FILE = 4096, 65536  # bytes
GATHER = 0.01  # seconds for which the thread collects lines before it writes: fewer wake-ups under load

# The priorities of syslog(3) that relay uses.
CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
NEWLINE = "\n"  # the only line separator for the journal; str.splitlines has ten more


class LogWriter:
    """Writes lines to a descriptor, in order. `write` never waits; `dropped` counts the lost lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._chunk = CHUNK_OF_FILE if _is_file(descriptor) else CHUNK
        self._journal = is_journal(descriptor)
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._queued = 0  # lines; only the loop changes it
        self._handled = 0  # lines written or lost; only the thread changes it
        self._lost = 0  # lines that could not be written: disk full, reader gone; only the thread changes it
        self._refused = 0  # lines that found the queue full; only the loop changes it
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    @property
    def dropped(self) -> int:
        """The number of lines lost so far."""
        return self._lost + self._refused

    def write(self, line: str, priority: int = INFO) -> None:
        """Queue a line with its newline, or several lines that belong together, such as a traceback."""
        if len(self._lines) >= QUEUE:
            self._refused += 1
            return
        self._lines.append(prefixed(line, priority) if self._journal else line)
        self._queued += 1
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, seconds: float) -> None:
        """Wait until all queued lines are written, for at most `seconds`. It blocks: only for the end of a process."""
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
                    traceback.print_exc()  # to standard error, the only output left
                    self._lost += 1
                    self._handled += 1
                    if self._lines:
                        self._lines.popleft()  # so that the same line cannot fail again

    def _write_some(self) -> None:
        chunk, count = self._take()
        if not self._write_all(chunk):
            self._lost += count
        self._handled += count

    def _take(self) -> tuple[bytes, int]:
        """Take whole lines from the queue, up to a chunk in all but at least one line."""
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
        """Write all of the data; False if that fails (ENOSPC, EPIPE, EIO, …)."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process made the shared descriptor non-blocking. poll(2), because select(2) takes only
                # descriptors below 1,024.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(1000)  # milliseconds
            except OSError:
                return False
        return True


def is_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the descriptor is connected to systemd's journal.

    JOURNAL_STREAM contains the device and inode number of that connection (systemd.exec(5)). A process with another
    output may have inherited the variable, so the two numbers are compared with the descriptor's own.
    """
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False  # the descriptor is closed, or the variable is not set


def prefixed(text: str, priority: int) -> str:
    """Put the priority before each line of `text`, since the journal stores each line separately."""
    mark = f"<{priority}>"
    return f"{mark}{text[:-1].replace(NEWLINE, NEWLINE + mark)}{text[-1:]}"


class _Prefixing(io.TextIOBase):
    """A wrapper of a text stream that puts a priority before each line."""

    def __init__(self, stream: TextIO, priority: int) -> None:
        self.unmarked = stream
        self._priority = priority
        self._at_line_start = True

    def write(self, text: str) -> int:
        if text:
            marked = prefixed(text, self._priority)
            self.unmarked.write(marked if self._at_line_start else marked[len(f"<{self._priority}>") :])
            self._at_line_start = text.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self.unmarked.flush()

    def fileno(self) -> int:
        return self.unmarked.fileno()

    def writable(self) -> bool:
        return True


def mark_output(output: int = INFO) -> None:
    """Give printed lines a priority if they go to the journal: `output` on standard output, error on standard error.

    A further call changes the priority.

    This is for text that does not come through a `LogWriter`: mistakes in the settings, a command's answer, the
    traceback of an uncaught exception.
    """
    if sys.stdout is not None and is_journal(1):
        stream = sys.stdout.unmarked if isinstance(sys.stdout, _Prefixing) else sys.stdout
        sys.stdout = _Prefixing(stream, output)
    if sys.stderr is not None and is_journal(2) and not isinstance(sys.stderr, _Prefixing):
        sys.stderr = _Prefixing(sys.stderr, ERROR)


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # the descriptor is closed: every line will be lost, and counted


def timestamp(seconds: float) -> str:
    """Format a time as RFC 3339, UTC, in milliseconds."""
    whole = int(seconds)
    return f"{_utc_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _utc_second(whole: int) -> str:
    """The part of a timestamp that is the same for all lines of one second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def local_timestamp(seconds: float) -> str:
    """Format a local time for people, with its offset from UTC: "2026-11-24 03:19:10.925 +0100"."""
    whole = int(seconds)
    before, offset = _local_second(whole)
    return f"{before}.{int((seconds - whole) * 1000):03d} {offset}"


@lru_cache(maxsize=2)
def _local_second(whole: int) -> tuple[str, str]:
    local = time.localtime(whole)
    return time.strftime("%Y-%m-%d %H:%M:%S", local), time.strftime("%z", local)
