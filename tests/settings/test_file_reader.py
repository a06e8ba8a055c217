"""How a settings file is read: regular files only, and never for longer than the deadline."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from relay.settings.file_reader import MAX_FILE, Unreadable, read, read_apart
from tests.support.hung_file import hung
from tests.support.observe import PATIENCE, wait_until


def children(monkeypatch: pytest.MonkeyPatch) -> Queue[subprocess.Popen[bytes]]:
    """The processes that are started from now on."""
    started: Queue[subprocess.Popen[bytes]] = Queue()

    class Spy(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.put(self)

    monkeypatch.setattr(subprocess, "Popen", Spy)
    return started


both = pytest.mark.parametrize("reading", [read, read_apart])
Reading = Callable[[Path], bytes]


@both
@pytest.mark.parametrize("content", [b"", b"workers = 1\n", bytes(range(256)) * 5000], ids=["empty", "short", "long"])
def test_a_regular_file_is_read_as_it_is(tmp_path: Path, reading: Reading, content: bytes) -> None:
    path = tmp_path / "relay.toml"
    path.write_bytes(content)
    assert reading(path) == content[: MAX_FILE + 1]
    link = tmp_path / "link"
    link.symlink_to(path)
    assert reading(link) == content[: MAX_FILE + 1]


@both
def test_whatever_is_no_regular_file_is_named(tmp_path: Path, reading: Reading) -> None:
    pipe, name = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(name))
        found = ((pipe, "a pipe"), (name, "a socket"), (tmp_path, "a directory"), (Path("/dev/zero"), "a character"))
        for path, kind in found:
            with pytest.raises(Unreadable, match=f"^is {kind}.*; name a regular file$"):
                reading(path)
    with pytest.raises(Unreadable, match="no such file or directory"):
        reading(tmp_path / "none")


def test_a_pipe_of_the_shells_is_named_as_one(tmp_path: Path) -> None:
    """`relay check --config <(…)`: a path that means something else in the process that reads."""
    reading, writing = os.pipe()
    try:
        for path in (f"/dev/fd/{reading}", f"/proc/self/fd/{reading}"):
            with pytest.raises(Unreadable, match=r"^is a pipe"):
                read_apart(Path(path))
    finally:
        os.close(reading)
        os.close(writing)


def test_a_file_system_that_hangs_is_left_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = children(monkeypatch)
    path = tmp_path / "relay.toml"
    path.write_text("workers = 1\n")
    with hung(path):
        with pytest.raises(Unreadable, match=r"^not read within 0\.5 s"):
            read_apart(path, 0.5)
        child = started.get_nowait()
        wait_until(lambda: child.poll() is not None, what="the child gone")
    assert read_apart(path) == b"workers = 1\n"


def test_the_child_has_nothing_of_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is stuck in the kernel must not keep a listening socket open."""
    started = children(monkeypatch)
    path = tmp_path / "relay.toml"
    path.write_text("workers = 1\n")
    with socket.create_server(("127.0.0.1", 0)) as sock, hung(path), ThreadPoolExecutor() as pool:
        sock.set_inheritable(True)
        answer = pool.submit(read_apart, path, 30.0)
        child = started.get(timeout=PATIENCE)
        program = Path(f"/proc/{child.pid}/cmdline")
        wait_until(lambda: b"settings/file_reader.py" in program.read_bytes(), what="the program begun")
        kept = [link.readlink() for link in Path(f"/proc/{child.pid}/fd").iterdir()]
        child.kill()
        with pytest.raises(Unreadable, match="was killed"):
            answer.result(PATIENCE)
    assert kept
    assert not any(str(name).startswith("socket:") for name in kept), kept


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/bin/false"])
def test_where_no_child_can_be_started_the_process_itself_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    path = tmp_path / "relay.toml"
    path.write_text("workers = 1\n")
    assert read_apart(path) == b"workers = 1\n"
    with pytest.raises(Unreadable, match="no such file"):
        read_apart(tmp_path / "none")
