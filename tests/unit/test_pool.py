"""The pool of workers: pauses between starts, and a start that is overtaken by other orders."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from relay import pool as pools
from relay.plan import Plan
from relay.pool import Pool
from relay.prepare import prepare
from relay.settings import load
from relay.worker_process import BACKOFF_LIMIT, backoff, launch
from tests.observe import alive

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


class Overtaken:
    """Starts workers, and lets something happen while the first one is being started."""

    def __init__(self, meanwhile: Any) -> None:
        self.pids: list[int] = []
        self._meanwhile = meanwhile

    async def __call__(self, plan: Plan, index: int) -> Any:
        process, channel = await launch(plan, index)
        self.pids.append(process.pid)
        if len(self.pids) == 1:
            self._meanwhile()
        return process, channel


def pool_of(path: Path) -> tuple[Plan, Pool]:
    file = path / "relay.toml"
    file.write_text(TOML)
    plan = prepare(load(file, {}))
    log: Any = structlog.get_logger()
    return plan, Pool(plan, log, lambda: None, list, lambda _: None)


def running(pool: Pool) -> int | None:
    """The process of its one worker."""
    return pool.workers[0].pid


async def test_a_worker_whose_orders_are_old_before_it_runs_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = pool_of(tmp_path)
    starts = Overtaken(lambda: pool.apply([]))
    monkeypatch.setattr(pools, "launch", starts)
    await pool.start()
    try:
        first, second = starts.pids
        assert not alive(first)
        assert running(pool) == second
    finally:
        pool.stop()
        assert await pool.wait(10)


@pytest.mark.parametrize("what", ["drained", "stopped"])
async def test_a_worker_that_is_not_wanted_any_more_when_it_runs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    _, pool = pool_of(tmp_path)
    now = asyncio.get_running_loop().time()
    starts = Overtaken((lambda: pool.close_evenly(now, now)) if what == "drained" else pool.stop)
    monkeypatch.setattr(pools, "launch", starts)
    await pool.start()
    assert not alive(starts.pids[0])
    assert len(starts.pids) == 1
    assert running(pool) is None
    if what == "drained":
        await pool.resume()
        assert running(pool) == starts.pids[1]
        pool.stop()
    assert await pool.wait(10)
