"""Keeps tasks running that live as long as the process: an exception is logged with its traceback, and work goes on.

asyncio logs a task's exception only when the task object is destroyed. A task that is referenced for the whole run
would end without a line in the log, and its work would remain undone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds of backoff from an exception to the next try; doubled each time


class ErrorLog(Protocol):
    """What is needed of the service log."""

    def error(self, event: str, *, about: str, exc_info: bool) -> Any: ...


@contextlib.contextmanager
def guarded(about: str, log: ErrorLog) -> Iterator[None]:
    """Log an exception of the block with its traceback, and go on after the block."""
    try:
        yield
    except Exception:  # noqa: BLE001 -- this is where defects end
        _log_defect(about, log)


async def keep_running(about: str, work: Callable[[], Coroutine[Any, Any, None]], log: ErrorLog) -> None:
    """Run `work` until it returns, or until this coroutine is cancelled.

    An exception of `work` is logged, and `work` is called again after a backoff. It must not rely on variables of the
    call that failed.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    pause = FIRST_PAUSE
    while True:
        started = loop.time()
        try:
            await work()
            return
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            _log_defect(about, log)  # a task that `work` awaited was cancelled, not this one
        except Exception:  # noqa: BLE001 -- as above
            _log_defect(about, log)
        if loop.time() - started > LONGEST_PAUSE:
            pause = FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _log_defect(about: str, log: ErrorLog) -> None:
    with contextlib.suppress(Exception):  # nor may a log that fails end the work
        log.error("internal error", about=about, exc_info=True)  # noqa: LOG014 -- called from handlers alone
