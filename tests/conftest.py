"""What holds for every test run: a time limit that also holds on uvloop, and a count of skipped tests by reason.

A skip is a promise that was not checked on this machine, so it is shown as plainly as a failure. Fixtures are not here:
each folder of tests has its own.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Generator
from types import FrameType

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class TimeLimit(SystemExit):
    """A test took longer than its time limit.

    pytest-timeout's signal method raises an ordinary exception from the signal's handler. On uvloop that handler runs
    inside the loop, which reports an ordinary exception to its exception handler and goes on waiting: the test would
    hang, or pass late. SystemExit is one of the two exceptions that asyncio and uvloop both let out of
    `run_until_complete`, and the one of them that pytest counts as the failure of this test alone.
    """


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer() -> Generator[None, object, object]:
    """Let pytest-timeout install its handler for SIGALRM, then have it end the test by `TimeLimit`."""
    result = yield
    expire = signal.getsignal(signal.SIGALRM)

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        if callable(expire):
            try:
                expire(signum, frame)
            except pytest.fail.Exception as error:
                raise TimeLimit(error.msg) from None

    if callable(expire):  # else the thread method was asked for, or a debugger is at work
        signal.signal(signal.SIGALRM, on_alarm)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped and why, most frequent reason first."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _path, _line, reason = report.longrepr  # how pytest keeps a skip
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.write_sep("=", f"{reasons.total()} skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5} {reason}")
