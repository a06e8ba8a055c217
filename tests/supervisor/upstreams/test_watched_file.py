"""A file that others change, and what may be wrong with it: nobody waits for it, and what was read before counts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.supervisor.upstreams import watched_file
from relay.supervisor.upstreams.watched_file import WatchedFile


def whole(text: str) -> str:
    if "wrong" in text:
        raise ValueError("it is wrong")
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hosts"


@pytest.fixture
def file(path: Path) -> WatchedFile[str]:
    return WatchedFile(path, whole, "none")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def long(path: Path) -> None:
    path.write_text("x" * (watched_file.MAX_SIZE + 1))


def wrong(path: Path) -> None:
    path.write_text("wrong")


def folder(path: Path) -> None:
    path.mkdir()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path)


UNUSABLE = [fifo, long, wrong, folder, endless, circle]


async def test_a_file_that_comes_changes_and_goes(path: Path, file: WatchedFile[str]) -> None:
    assert await file.current() == "none"
    for text in ("one", "two", "three"):
        await asyncio.to_thread(path.write_text, text)
        assert await file.current() == text
    await asyncio.to_thread(path.unlink)
    assert await file.current() == "none"


@pytest.mark.parametrize("spoil", UNUSABLE)
async def test_what_cannot_be_read_leaves_what_was_read_and_is_said_once(
    path: Path, file: WatchedFile[str], spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(path.write_text, "good")
    assert await file.current() == "good"
    await asyncio.to_thread(path.unlink)
    await asyncio.to_thread(spoil, path)
    before = descriptors()
    for _ in range(3):
        assert await file.current() == "good"
    assert descriptors() == before
    assert [record.getMessage().startswith(f"cannot use {path}: ") for record in caplog.records] == [True]
    await asyncio.to_thread(path.rename, path.with_name("away"))
    await asyncio.to_thread(path.write_text, "good again")
    assert await file.current() == "good again"


async def test_a_file_system_that_hangs_is_waited_for_once(
    path: Path, file: WatchedFile[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(path.write_text, "good")
    assert await file.current() == "good"
    hangs, begun, original = threading.Event(), threading.Semaphore(0), watched_file._read

    def read(path: Path, known: watched_file.Signature | None) -> watched_file._Reading:
        begun.release()
        hangs.wait()
        return original(path, known)

    monkeypatch.setattr(watched_file, "_read", read)
    monkeypatch.setattr(watched_file, "PATIENCE", 0.05)
    await asyncio.to_thread(path.write_text, "better")
    assert await asyncio.gather(*(file.current() for _ in range(5))) == ["good"] * 5
    monkeypatch.setattr(watched_file, "PATIENCE", 3600.0)  # nobody waits for that
    assert await file.current() == "good"
    assert begun.acquire(blocking=False)
    assert not begun.acquire(blocking=False), "one thread hangs, not one for each that asked"
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot use {path}: no answer from the file system in 0.05 s; keeping what was read before"
    ]
    (thread,) = threads(path)
    hangs.set()
    await asyncio.to_thread(thread.join)
    assert await file.current() == "better"


def threads(path: Path) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"read {path}"]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_machine_without_another_thread(
    path: Path, file: WatchedFile[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(path.write_text, "good")
    assert await file.current() == "good"

    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    await asyncio.to_thread(path.write_text, "better")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert await file.current() == "good"
    assert await file.current() == "better"


def test_a_reading_that_ends_after_the_loop_is_nobody_s_trouble(
    path: Path, file: WatchedFile[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    original = watched_file._read

    def read(path: Path, known: watched_file.Signature | None) -> watched_file._Reading:
        hangs.wait()
        return original(path, known)

    monkeypatch.setattr(watched_file, "_read", read)
    monkeypatch.setattr(watched_file, "PATIENCE", 0.01)
    assert asyncio.run(file.current()) == "none"
    (thread,) = threads(path)
    assert thread.daemon
    hangs.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_what_has_not_changed_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0

    def parse(text: str) -> str:
        nonlocal parsed
        parsed += 1
        return text

    file = WatchedFile(path, parse, "none")
    await asyncio.to_thread(path.write_text, "one")
    await asyncio.to_thread(os.utime, path, (1.0, 1.0))  # long ago
    for _ in range(5):
        assert await file.current() == "one"
    assert parsed == 1
