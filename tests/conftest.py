"""What holds for every test run: a time limit that also holds on uvloop, and a list of the skipped tests by reason.

A skipped test is a promise that was not checked on this machine, so it is shown as plainly as a failure. Where the
environment variable CI is set (`.ci/run` sets it), a skip whose reason is not in expected_skips.txt fails the run: a
program that is no longer installed there must not take a part of the tests away unnoticed.

Fixtures are not here: each folder of tests has its own.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("untimed", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=25)  # make quick
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Undo what the surroundings of this run would do to the programs that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell does for what it runs in the background; relays that are started from here would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")


def expected_reasons(lines: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each expected reason as a whole; a `*` in a line stands for any text."""
    reasons = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return re.compile("|".join(re.escape(reason).replace(r"\*", ".*") for reason in reasons) or r"(?!)", re.DOTALL)


def skips(config: pytest.Config) -> list[tuple[str, str]]:
    """Where and why tests were skipped, those of whole modules included; all of them in xdist's controller only."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    return [(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")) for report in reports]


def unexpected_skips(config: pytest.Config) -> list[tuple[str, str]]:
    """The skips that fail this run: none outside CI, and none in xdist's workers, which see only their own."""
    if not os.environ.get("CI") or hasattr(config, "workerinput"):
        return []
    expected = expected_reasons(EXPECTED_SKIPS.read_text().splitlines())
    return [(test, reason) for test, reason in skips(config) if not expected.fullmatch(reason)]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run whose tests all passed if one was skipped that CI does not expect to be."""
    if exitstatus == pytest.ExitCode.OK and unexpected_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many tests were skipped and why, most frequent reason first, and which skips fail the run."""
    reasons = Counter(reason for _, reason in skips(config))
    if reasons:
        terminalreporter.write_sep("=", f"{reasons.total()} skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5} {reason}")
    unexpected = unexpected_skips(config)
    if unexpected:
        terminalreporter.write_sep("=", f"{len(unexpected)} skipped unexpectedly", red=True)
        for test, reason in unexpected:
            terminalreporter.write_line(f"{test}: {reason}")
        terminalreporter.write_line("CI fails for these; a reason that is to be expected there goes into the file")
        terminalreporter.write_line(str(EXPECTED_SKIPS))
