"""A small file that other programs change: parsed once per change, and read in a thread outside the event loop.

A hung file system, or a fifo in the file's place, blocks that thread and not the loop; callers get the value read
before. A file that cannot be read or parsed keeps the value read before as well, and is logged once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

logger = logging.getLogger("relay.resolve")

PATIENCE = 2.0  # seconds that a caller waits for the file system
MAX_SIZE = 1 << 20  # bytes; a hosts file of thousands of lines is some hundred kilobytes
# Seconds. A file changed less than this before it was read may change again within the same tick of the file system's
# clock, with the same timestamps: its signature is not kept, and the file is read again next time.
UNSETTLED = 0.1

Signature = tuple[int, ...]
T = TypeVar("T")


class _Reading(NamedTuple):
    """The result of a reading: a new text and its signature, an unchanged file, or an error."""

    signature: Signature | None  # None: no file, or read it again next time
    text: str | None  # None: unchanged
    error: str = ""
    missing: bool = False


class WatchedFile(Generic[T]):
    """A file's content as parsed by `parse`, which may raise ValueError; `missing` while there is no file."""

    def __init__(self, path: Path, parse: Callable[[str], T], missing: T) -> None:
        self._path = path
        self._parse = parse
        self._missing = missing
        self._value = missing
        self._signature: Signature | None = None
        self._reading: asyncio.Future[None] | None = None
        self._late = False  # a caller has waited PATIENCE seconds for this reading; the next ones do not wait
        self._problem = ""  # the problem logged last, while it lasts

    async def current(self) -> T:
        """The current content, or the last one that could be read. Takes PATIENCE seconds at most."""
        if self._reading is None:
            try:
                self._start()
            except RuntimeError as error:  # no thread can be started
                self._log_problem(str(error))
                return self._value
        reading = self._reading
        if reading is not None and not self._late:
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.shield(reading)
            except TimeoutError:
                self._late = True
                self._log_problem(f"no answer from the file system in {PATIENCE:g} s")
        return self._value

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        known = self._signature

        def read() -> None:
            try:
                found = _read(self._path, known)
                value = self._parse(found.text) if found.text is not None else None
            except OSError as error:
                found, value = _Reading(None, None, (error.strerror or str(error)).lower()), None
            except ValueError as error:
                found, value = _Reading(None, None, " ".join(str(error).split())[:200]), None
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(self._take, done, found, value)

        # A daemon thread: a hung one must not keep the process from ending.
        threading.Thread(target=read, name=f"read {self._path}", daemon=True).start()
        self._reading = done

    def _take(self, done: asyncio.Future[None], found: _Reading, value: T | None) -> None:
        self._reading, self._late = None, False
        if found.missing:
            self._value, self._signature = self._missing, None
        elif found.text is not None:
            self._value, self._signature = value, found.signature  # type: ignore[assignment]  # parsed from a text
        self._log_problem(found.error)
        done.set_result(None)

    def _log_problem(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning("cannot use %s: %s; keeping what was read before", self._path, problem)
        self._problem = problem


def _read(path: Path, known: Signature | None) -> _Reading:
    """Read the file unless its signature is `known`. Raises OSError and ValueError."""
    try:
        # O_NONBLOCK: opening a fifo does not wait for a writer; it is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return _Reading(None, None, missing=True)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("it is no regular file")
        signature = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if signature == known:
            return _Reading(signature, None)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_SIZE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_SIZE:
        raise ValueError(f"it has more than {MAX_SIZE} bytes")
    settled = abs(time.time() - state.st_mtime) > UNSETTLED
    return _Reading(signature if settled else None, data.decode("utf-8", "replace"))
