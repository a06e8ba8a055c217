"""What a machine of `test_kernels.py` does: `relay check`, the engines' conformance suite, a soak.

    python scripts/test_kernels_inside.py MINUTES CONNECTIONS

Whatever is printed goes to the machine's console. Results are JSON, an object in a line, on the serial port NEWS.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.engines.kinds import KINDS

PORT = Path(os.environ["NEWS"])
TEST_SECONDS = 900  # for each test
PARTS = "ring's parts"  # tests/engines/ring
SOME = 100  # tests after which there is news


def tell(**news: object) -> None:
    """A result, or several."""
    with PORT.open("w") as port:
        port.write(json.dumps(news) + "\n")


def output(*arguments: str, **environment: str) -> str:
    """Run this Python with these arguments; everything that it prints."""
    text = ""
    with subprocess.Popen(
        [sys.executable, *arguments], env=os.environ | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            text += line
    return text


def check() -> str:
    """The engine that `relay check` chooses, and why."""
    text = output("-m", "relay", "check", RELAY_UPSTREAM="hub.example")
    return next((line.partition(" ")[2] for line in text.splitlines() if line.startswith("engine: ")), text)


class Results:
    """A pytest plugin that counts by engine, and keeps what failed tests said."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {name: Counter(passed=0) for name in KINDS}
        self.failures: list[str] = []
        self._done = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS), append=False)  # before its own, which would count

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("/")[2]
        # Of two engines whose names begin alike the longer one.
        engines = [engine for engine in KINDS if re.search(rf"[\[-]{re.escape(engine)}[\]-]", name)]
        counts = self.counts.setdefault(max(engines, key=len, default=PARTS), Counter(passed=0))
        if report.failed:
            # What was wrong after a test that had passed counts as a failure more.
            counts["failed"] += 1
            lines = report.longreprtext.splitlines()
            said = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")] or lines[-1:]
            self.failures.append(f"{name}: {' / '.join(said)[:400]}")
            tell(failed=self.failures[-1])
        elif report.skipped:
            counts["skipped"] += 1
        elif report.when == "call":
            counts["passed"] += 1
        if report.when == "teardown":
            self._done += 1
            if not self._done % SOME:
                tell(tests=self._done)


def conformance() -> Results:
    """Run the suite."""
    results = Results()
    pytest.main(
        [
            "tests/engines", "-v", "--color=no", "-p", "no:cacheprovider",
            "-o", "faulthandler_timeout=0", "--durations=10",
        ],
        [results],
    )  # fmt: skip
    return results


def soak(minutes: str, connections: str) -> str:
    """How it went, in a few words."""
    text = output("-m", "bench.soak", "--minutes", minutes, "--connections", connections)
    counts = re.findall(r"([\d,]+) connections, \d+ differences", text)
    wrong = re.findall(r"^FAIL (.*)", text, re.MULTILINE) or ([] if "\nPASS" in text else ["it did not end well"])
    how = "FAILED: " + "; ".join(wrong) if wrong else "passed"
    return f"{how}, {counts[-1] if counts else 'no'} connections in {minutes} minutes"


def main() -> None:
    """Everything, told as it comes."""
    minutes, connections = sys.argv[1:]
    tell(kernel=platform.release(), python=platform.python_version())
    tell(check=check())
    results = conformance()
    suite = {
        engine: ", ".join(f"{counts[state]} {state}" for state in ("passed", "failed", "skipped") if state in counts)
        for engine, counts in results.counts.items()
    }
    tell(suite=suite)
    tell(soak=soak(minutes, connections))


if __name__ == "__main__":
    main()
