"""The pool of workers: pauses between starts, and starts and ends at which something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from relay.core import counters
from relay.ipc.channel import Channel, pair
from relay.ipc.messages import Resolved, Stop
from relay.settings.model import load
from relay.supervisor import tasks
from relay.supervisor import worker_pool as pools
from relay.supervisor.instance import Instance
from relay.supervisor.prepare import prepare
from relay.supervisor.worker_pool import WorkerPool
from relay.supervisor.worker_process import BACKOFF_LIMIT, Process, backoff, goes_first, launch
from tests.support.observe import PATIENCE, alive, descriptors

TOML = """
workers = 1
engine = "stream"
[[listeners]]
name = "main"
bind = ["127.0.0.1:0"]
upstream = ["127.0.0.1:9"]
"""


def test_the_first_restart_is_at_once_and_the_pauses_double() -> None:
    assert [backoff(failures) for failures in range(10)] == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_crash_loop_of_days_is_still_answered() -> None:
    pauses = [backoff(failures) for failures in range(10, 100_000)]
    assert set(pauses) == {BACKOFF_LIMIT}


class Starts:
    """Starts workers, unless there is an error to raise first."""

    def __init__(self, *errors: Exception) -> None:
        self.pids: list[int] = []
        self.errors = list(errors)

    def __call__(self, instance: Instance, index: int) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        process, channel = launch(instance, index)
        self.pids.append(process.pid)
        return process, channel


class Messages:
    """What is said to the service log, by level."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.fields: list[dict[str, Any]] = []  # of each

    def bind(self, **_: Any) -> Messages:
        return self

    def __getattr__(self, level: str) -> Callable[..., None]:
        def say(event: str, **fields: Any) -> None:
            self.said.append((level, event))
            self.fields.append(fields)

        return say


def pool_of(path: Path, log: Any = None, changed: Callable[[], None] = lambda: None) -> WorkerPool:
    file = path / "relay.toml"
    file.write_text(TOML)
    return WorkerPool(prepare(load(file, {})), log or structlog.get_logger(), changed, list, lambda _: None)


@contextlib.asynccontextmanager
async def started(pool: WorkerPool) -> AsyncIterator[None]:
    """The pool's life, however the block ends."""
    await pool.start()
    try:
        yield
    finally:
        pool.stop()
        if not await pool.wait(PATIENCE):
            await pool.kill()


async def until(look: Callable[[], object]) -> None:
    """Let the loop go on until that is true."""
    async with asyncio.timeout(PATIENCE):
        while not look():  # noqa: ASYNC110  # what a process does sets no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        ValueError("a control message of 131073 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE", 0.01)
    log = Messages()
    pool = pool_of(tmp_path, log)
    starts = Starts(error, error)
    monkeypatch.setattr(pools, "launch", starts)
    async with started(pool):
        await until(lambda: pool.workers[0].ready)
        expected = "worker not started" if isinstance(error, OSError) else "internal error"
        assert log.said.count(("error", expected)) == 2
        assert pool.workers[0].restarts == 0


async def test_an_error_while_a_dead_worker_is_cleared_up_after_keeps_no_successor_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE", 0.01)
    log = Messages()
    broken = False

    def changed() -> None:
        if broken:
            raise RuntimeError("a defect")

    pool = pool_of(tmp_path, log, changed)
    starts = Starts()
    monkeypatch.setattr(pools, "launch", starts)
    async with started(pool):
        await until(lambda: pool.workers[0].ready)
        broken = True
        monkeypatch.setattr(counters, "fold", None)
        os.kill(starts.pids[0], signal.SIGKILL)
        await until(lambda: len(starts.pids) == 2)
        await until(lambda: pool.workers[0].ready)
        assert pool.workers[0].pid == starts.pids[1]
        assert ("error", "worker died") in log.said
        # In the accounts; and of `changed`, at its end and when it is ready.
        assert log.said.count(("error", "internal error")) == 3
        broken = False


async def test_what_is_not_told_of_a_long_message_is_told_of_the_others(tmp_path: Path) -> None:
    log = Messages()
    pool = pool_of(tmp_path, log)
    async with started(pool):
        await until(lambda: pool.workers[0].ready)
        pool.tell(Resolved("hub.example", tuple(f"2001:db8::{number:x}" for number in range(10_000))))
        assert ("error", "worker not told") in log.said
        pool.tell(Stop())
        await until(lambda: pool.workers[0].restarts == 1)


async def test_no_worker_is_started_while_there_is_nothing_for_it_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Messages()
    pool = pool_of(tmp_path, log)
    starts = Starts()
    monkeypatch.setattr(pools, "launch", starts)
    async with started(pool):
        now = asyncio.get_running_loop().time()
        pool.drain(now, now)  # before it has been started
        assert await pool.wait(10)
        assert starts.pids == []
        pool.resume()
        await until(lambda: pool.workers[0].ready)
        pool.drain(now, now)
        os.kill(starts.pids[0], signal.SIGKILL)
        assert await pool.wait(10)
        assert len(starts.pids) == 1
        (died,) = [fields for (_, event), fields in zip(log.said, log.fields, strict=True) if event == "worker died"]
        assert died["restart_in_seconds"] is None
        pool.resume()
        await until(lambda: pool.workers[0].ready)
        assert len(starts.pids) == 2
        assert pool.workers[0].restarts == 1
    assert not any(map(alive, starts.pids))


@pytest.mark.parametrize(("inherited", "expected"), [(-1000, -500), (-500, 0), (0, 500), (501, 1000), (1000, 1000)])
def test_a_worker_goes_before_the_supervisor(tmp_path: Path, inherited: int, expected: int) -> None:
    score = tmp_path / "4711" / "oom_score_adj"
    score.parent.mkdir()
    score.write_text(f"{inherited}\n")
    assert goes_first(4711, tmp_path) == ""
    assert int(score.read_text()) == expected


def test_where_the_kernel_has_no_such_score(tmp_path: Path) -> None:
    assert "No such file or directory" in goes_first(4711, tmp_path)


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGKILL, "signal SIGKILL"),
        (signal.SIGRTMIN, "signal SIGRTMIN"),
        (signal.SIGRTMIN + 1, "signal SIGRTMIN+1"),
        (signal.SIGRTMAX - 1, f"signal SIGRTMIN+{signal.SIGRTMAX - 1 - signal.SIGRTMIN}"),
        (33, "signal 33"),  # the C library's
    ],
)
async def test_a_worker_that_is_killed_by_a_signal_with_or_without_a_name_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, how: str
) -> None:
    """A real worker ignores most of them; a process in its place does not."""
    log = Messages()
    pool = pool_of(tmp_path, log)
    starts = Starts()

    def other(_instance: Instance, _index: int) -> Any:
        monkeypatch.setattr(pools, "launch", starts)
        ours, theirs = pair()
        with theirs:  # the process has it as long as it lives
            child = subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()])
        return Process(child), Channel(ours)

    monkeypatch.setattr(pools, "launch", other)
    async with started(pool):
        await until(lambda: pool.workers[0].pid is not None)
        victim = pool.workers[0].pid
        assert victim is not None
        os.kill(victim, number)
        await until(lambda: pool.workers[0].ready)
        (died,) = [fields for (_, event), fields in zip(log.said, log.fields, strict=True) if event == "worker died"]
        assert (died["pid"], died["how"]) == (victim, how)
        assert len(starts.pids) == pool.workers[0].restarts == 1


async def test_a_drain_that_is_taken_back_before_the_start_starts_no_worker_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(tmp_path)
    starts = Starts()
    monkeypatch.setattr(pools, "launch", starts)
    now = asyncio.get_running_loop().time()
    pool.drain(now, now)
    pool.resume()
    async with started(pool):
        await until(lambda: pool.workers[0].ready)
        assert len(starts.pids) == 1
    assert not any(map(alive, starts.pids))


@pytest.mark.parametrize("told", [True, False], ids=["pidfd", "no pidfd"])
async def test_the_end_of_a_process_is_seen(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    def refused(_pid: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not told:
        monkeypatch.setattr(os, "pidfd_open", refused)
    gc.collect()  # what earlier tests left would go meanwhile
    before = descriptors(os.getpid())
    process = Process(subprocess.Popen(["sleep", "600"]))  # noqa: ASYNC220  # as the pool does it
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    process.send_signal(35)
    assert await waiting == -35
    assert await process.wait() == process.returncode == -35
    process.kill()
    process.send_signal(signal.SIGABRT)
    assert descriptors(os.getpid()) == before
