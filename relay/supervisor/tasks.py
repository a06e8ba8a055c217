"""Tasks that live as long as the process: a defect in one is logged with its traceback, and never ends it.

asyncio tells of a task's exception when nobody can ask for it any more, which for a task that somebody holds is never:
what the task did is not done from then on, and the log is silent about it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds from a defect to the next try; each doubles the one before


class ErrorLog(Protocol):
    """What is needed of the service log."""

    def error(self, event: str, *, about: str, exc_info: bool) -> Any: ...


@contextlib.contextmanager
def guarded(about: str, log: ErrorLog) -> Iterator[None]:
    """Log an exception of the block, with its traceback, and go on behind it."""
    try:
        yield
    except Exception:  # noqa: BLE001 -- this is where defects end
        _say(about, log)


async def keep_running(about: str, work: Callable[[], Coroutine[Any, Any, None]], log: ErrorLog) -> None:
    """Run `work` until it returns, or this is cancelled.

    When it raises something, that is logged, and it is called again after a pause. It has to begin with what it finds,
    not with what it knew.
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
            _say(about, log)  # something that it waited for was cancelled; nobody wants this to end
        except Exception:  # noqa: BLE001 -- as above
            _say(about, log)
        if loop.time() - started > LONGEST_PAUSE:
            pause = FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _say(about: str, log: ErrorLog) -> None:
    with contextlib.suppress(Exception):  # a log that fails must not end it either
        log.error("internal error", about=about, exc_info=True)  # noqa: LOG014 -- called from handlers alone
