"""Tasks that live as long as the process: nothing that goes wrong in one ends it, or is kept from the log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.supervisor.tasks import FIRST_PAUSE, LONGEST_PAUSE, guarded, keep_running
from tests.support.virtual_time import run


class Log:
    """Takes what is said of defects."""

    def __init__(self) -> None:
        self.about: list[str] = []

    def error(self, event: str, *, about: str, exc_info: bool) -> None:
        assert event == "internal error"
        assert exc_info
        self.about.append(about)


class Broken:
    """A log that fails itself."""

    def error(self, *_: Any, **__: Any) -> None:
        raise MemoryError


class Work:
    """Fails so many times, each after it has lasted so long, and then ends well."""

    def __init__(self, failures: int, lasts: float = 0.0, error: BaseException | None = None) -> None:
        self.calls: list[float] = []
        self._failures = failures
        self._lasts = lasts
        self._error = error or RuntimeError("a defect")

    async def __call__(self) -> None:
        self.calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._lasts)
        if len(self.calls) <= self._failures:
            raise self._error

    @property
    def pauses(self) -> list[float]:
        return [
            round(later - earlier - self._lasts, 3) for earlier, later in zip(self.calls, self.calls[1:], strict=False)
        ]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), asyncio.CancelledError()])
def test_it_is_begun_again_whatever_it_raised(error: BaseException) -> None:
    work, log = Work(3, error=error), Log()
    run(keep_running("the work", work, log))
    assert len(work.calls) == 4
    assert log.about == ["the work"] * 3


def test_the_pauses_grow_and_end_somewhere() -> None:
    work = Work(8)
    run(keep_running("the work", work, Log()))
    assert work.pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_after_a_long_life_the_pause_is_short_again() -> None:
    work = Work(3, lasts=LONGEST_PAUSE + 1)
    run(keep_running("the work", work, Log()))
    assert work.pauses == [FIRST_PAUSE] * 3


def test_a_log_that_fails_does_not_end_it() -> None:
    work = Work(2)
    run(keep_running("the work", work, Broken()))
    assert len(work.calls) == 3
    with guarded("a block", Broken()):
        raise RuntimeError("a defect")


@pytest.mark.parametrize("failures", [0, 1000])
def test_whoever_cancels_it_ends_it(failures: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(keep_running("the work", Work(failures, lasts=5.0), Log()))
        await asyncio.sleep(5.5 if failures else 1.0)  # in its pause, or in the work
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_a_guarded_block_says_what_went_wrong_and_is_left() -> None:
    log = Log()
    for about, fails in (("a block", True), ("another", False)):
        with guarded(about, log):
            assert not fails
    assert log.about == ["a block"]
    with pytest.raises(KeyboardInterrupt), guarded("a third", log):
        raise KeyboardInterrupt
