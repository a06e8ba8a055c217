"""CPython's own test cases on the ring: `classes` finds them, `outcomes` runs them in a process of their own.

They come with Python in its package `test`, and run unchanged. Where one of them makes a `SelectorEventLoop`, with
whatever selector, or asks asyncio for a new loop, it gets a `RingLoop`. The process is their own because they set
alarms and handlers of signals, fork, fill the table of descriptors and let warnings pass.

    python -m tests.engines.ring.cpython_cases RESULTS MODULE CASE ...
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import unittest
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

from relay.engines.ring import selector
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.selector import RingLoop, RingSelector
from tests.support.programs import PATIENCE, ROOT, environment

LIMIT = 40.0 * PATIENCE  # seconds for the cases of a module; the longest take ten
SELECTORS, SELECTOR_CLASS = "test.test_selectors", "RingSelectorTests"
MISSING = (
    "this Python came without the package `test` (Debian: libpython{}.{}-testsuite; make deps installs it)"
).format(*sys.version_info)

Error = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Outcome(NamedTuple):
    """What became of a case. `result`: passed, skipped or failed; `turns` of a ring while it ran."""

    result: str
    text: str = ""
    turns: int = 0


def installed() -> bool:
    """Whether this Python has the package; Debian's has a part of it in any case."""
    return importlib.util.find_spec("test") is not None and importlib.util.find_spec(SELECTORS) is not None


def classes(module: str) -> dict[str, type[unittest.TestCase]]:
    """The module's classes that have cases. Raises unittest.SkipTest if it is not for this system."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = vars(importlib.import_module(module))
    if module == SELECTORS:
        bases = (parts["BaseSelectorTestCase"], parts["ScalableSelectorMixIn"], unittest.TestCase)
        # One case asks for the selector's name, to know which class's parts it is to replace: it is an epoll's.
        named = type("EpollSelector", (RingSelector,), {})
        return {SELECTOR_CLASS: type(SELECTOR_CLASS, bases, {"SELECTOR": named})}
    return {
        name: value
        for name, value in parts.items()
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and cases(value)
    }


def cases(cls: type[unittest.TestCase]) -> list[str]:
    """The names of its cases."""
    return list(unittest.defaultTestLoader.getTestCaseNames(cls))


@cache
def outcomes(module: str, names: tuple[str, ...]) -> dict[str, Outcome]:
    """Run these cases (CLASS.CASE) of a module. One that has no outcome ended the process; "" is what that said."""
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder, "results"), Path(folder, "log")
        command = [sys.executable, "-m", "tests.engines.ring.cpython_cases", str(results), module, *names]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,  # they leave files there
                env={**environment(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT + 5)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it may have left running as well
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        text = f"exit status {process.returncode}\n{log.read_text(errors='replace')[-20000:]}"
        found = {"": Outcome("failed", text)}
        if results.exists():
            for line in results.read_text().splitlines():
                name, *outcome = json.loads(line)
                found[name] = Outcome(*outcome)
        return found


def check(module: str, names: tuple[str, ...], name: str) -> None:
    """Fail or skip the test that runs, if that is what became of the case `name`, one of `names`."""
    found = outcomes(module, names)
    outcome = found.get(name)
    if outcome is None:
        pytest.fail(f"it has ended the process, or one before it has: {found[''].text}", pytrace=False)
    if outcome.result == "skipped":
        pytest.skip(f"CPython: {outcome.text}")
    if outcome.result == "failed":
        pytest.fail(outcome.text, pytrace=False)


def turns(module: str, names: tuple[str, ...], cls: str) -> int:
    """How many turns of a ring the cases of a class took."""
    return sum(outcome.turns for name, outcome in outcomes(module, names).items() if name.startswith(f"{cls}."))


# --- in the process of the cases ------------------------------------------------------------------------------------


class CountingReactor(Reactor):
    """Counts the turns of all rings."""

    all_turns = 0

    def run(self) -> None:
        before = self.turns
        try:
            super().run()
        finally:
            CountingReactor.all_turns += self.turns - before


class AnyLoop(RingLoop):
    """Takes the place of `asyncio.SelectorEventLoop`, whose argument it has no use for."""

    def __init__(self, unused: selectors.BaseSelector | None = None) -> None:
        if unused is not None:
            unused.close()
        super().__init__()


class Recorder(unittest.TestResult):
    """Writes a line for each case as soon as it is over."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = Path(path).open("w", buffering=1)  # noqa: SIM115 -- open until the process ends
        self._outcome = Outcome("passed")
        self._turns = 0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._turns = CountingReactor.all_turns

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        outcome, self._outcome = self._outcome, Outcome("passed")
        self._write(".".join(test.id().rsplit(".", 2)[1:]), outcome)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._outcome = Outcome("skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._failed(self.failures[-1][1])

    def addError(self, test: Any, err: Error) -> None:  # noqa: N802
        super().addError(test, err)
        if isinstance(test, unittest.TestCase):
            self._failed(self.errors[-1][1])
        else:  # the fixture of a class or a module
            self._write(str(test), Outcome("failed", self.errors[-1][1]))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Error | None) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._failed((self.failures + self.errors)[-1][1])

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._failed("passed, which was not expected")

    def _failed(self, text: str) -> None:
        self._outcome = Outcome("failed", f"{self._outcome.text}\n{text}".lstrip())

    def _write(self, name: str, outcome: Outcome) -> None:
        turns = CountingReactor.all_turns - self._turns
        print(json.dumps([name, outcome.result, outcome.text, turns]), file=self._file)


def _run(results: str, module: str, names: Sequence[str]) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    ours: Any = selector
    ours.Reactor = CountingReactor
    theirs: Any = asyncio
    theirs.SelectorEventLoop = theirs.EventLoop = theirs.DefaultEventLoopPolicy._loop_factory = AnyLoop
    found = classes(module)
    suite = unittest.TestSuite()
    for name in names:
        cls, case = name.split(".")
        suite.addTest(found[cls](case))
    suite.run(Recorder(results))


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2], sys.argv[3:])
