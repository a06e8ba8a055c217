"""A small file of the system that others change: parsed once per change, and read away from the event loop.

A file system that hangs, or a fifo in the file's place, stops a thread and not the loop: whoever asks gets what was
read before. A file that cannot be read, or parsed, leaves what was read before as well, and the log has one line about
it.
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

PATIENCE = 2.0  # seconds that one who asks waits for the file system
MAX_SIZE = 1 << 20  # bytes; a hosts file of thousands of lines is some hundred kilobytes
# Seconds: a file that was changed less than this before it was read may change again within the file system's clock
# tick, which then shows nothing of it.
UNSETTLED = 0.1

Signature = tuple[int, ...]
T = TypeVar("T")


class _Reading(NamedTuple):
    """What the thread has found: the text and what to know it by, nothing new, or an error."""

    signature: Signature | None  # None: there is no file, or it is to be read again next time
    text: str | None  # None: nothing new
    error: str = ""
    missing: bool = False


class WatchedFile(Generic[T]):
    """The file's content as `parse` makes it, `missing` while there is none. `parse` may raise ValueError."""

    def __init__(self, path: Path, parse: Callable[[str], T], missing: T) -> None:
        self._path = path
        self._parse = parse
        self._missing = missing
        self._value = missing
        self._signature: Signature | None = None
        self._reading: asyncio.Future[None] | None = None
        self._late = False  # somebody has waited for this reading already
        self._problem = ""  # the last one that was logged, while it lasts

    async def current(self) -> T:
        """The file as it is now, or as it was when it could be read last. Takes PATIENCE seconds at most."""
        if self._reading is None:
            try:
                self._start()
            except RuntimeError as error:  # no thread to be had
                self._note(str(error))
                return self._value
        reading = self._reading
        if reading is not None and not self._late:
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.shield(reading)
            except TimeoutError:
                self._late = True
                self._note(f"no answer from the file system in {PATIENCE:g} s")
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

        # A daemon: one that hangs must not keep the process from ending.
        threading.Thread(target=read, name=f"read {self._path}", daemon=True).start()
        self._reading = done

    def _take(self, done: asyncio.Future[None], found: _Reading, value: T | None) -> None:
        self._reading, self._late = None, False
        if found.missing:
            self._value, self._signature = self._missing, None
        elif found.text is not None:
            self._value, self._signature = value, found.signature  # type: ignore[assignment]  # parsed from a text
        self._note(found.error)
        done.set_result(None)

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning("cannot use %s: %s; what was read of it before counts", self._path, problem)
        self._problem = problem


def _read(path: Path, known: Signature | None) -> _Reading:
    """Read the file unless it is as it was. Raises OSError and ValueError."""
    try:
        # A fifo is opened without waiting for somebody who writes to it, and then refused.
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
