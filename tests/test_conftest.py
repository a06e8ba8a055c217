"""What holds for every test run, tried on a small folder of tests with a copy of conftest.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import expected_reasons
from tests.support.programs import ROOT

CONFTEST = ROOT / "tests/conftest.py"
SAMPLE = """
import pytest

def test_passes():
    pass

@pytest.mark.parametrize("limit", [20, 30])
def test_needs_descriptors(limit):
    pytest.skip(f"needs 2048 descriptors; the limit is {limit}")

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    assert False
"""
ALTOGETHER = """
import pytest

pytest.skip("no io_uring [here]", allow_module_level=True)
"""
DESCRIPTORS = "needs 2048 descriptors; the limit is *"
IO_URING = "no io_uring [here]"


def run(folder: Path, *expected: str, processes: int, ci: str = "1") -> tuple[int, str]:
    """Run pytest over the sample; its exit status and what it printed."""
    shutil.copy(CONFTEST, folder)
    (folder / "expected_skips.txt").write_text("".join(f"{line}\n" for line in ("# comment", "", *expected)))
    (folder / "test_sample.py").write_text(SAMPLE)
    (folder / "test_altogether.py").write_text(ALTOGETHER)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --import-mode=importlib\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", str(processes), "."],
        cwd=folder,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout + done.stderr


pytestmark = pytest.mark.timeout(300)  # a machine that does other things starts processes slowly


@pytest.mark.parametrize("processes", [0, 2])
def test_skips_are_listed_by_reason_and_fail_nothing_outside_ci(tmp_path: Path, processes: int) -> None:
    status, said = run(tmp_path, processes=processes, ci="")
    assert status == 0, said
    assert "3 skipped, by reason" in said
    assert "1 needs 2048 descriptors; the limit is 20" in said
    assert "1 no io_uring [here]" in said
    assert "unexpectedly" not in said


def test_skips_with_expected_reasons_pass_in_ci(tmp_path: Path) -> None:
    status, said = run(tmp_path, DESCRIPTORS, IO_URING, processes=2)
    assert status == 0, said
    assert "unexpectedly" not in said


@pytest.mark.parametrize(
    ("expected", "test", "count", "processes"),
    [
        (DESCRIPTORS, "test_altogether.py", 1, 2),
        (IO_URING, "test_sample.py::test_needs_descriptors[30]", 2, 0),
    ],
)
def test_another_reason_fails_in_ci(tmp_path: Path, expected: str, test: str, count: int, processes: int) -> None:
    status, said = run(tmp_path, expected, processes=processes)
    assert status == 1, said
    assert f"{count} skipped unexpectedly" in said
    assert f"{test}: " in said


@pytest.mark.parametrize(
    ("line", "reason", "expected"),
    [
        (IO_URING, IO_URING, True),
        (IO_URING, "no io_uring h", False),  # no pattern but for the star
        ("no io_uring", IO_URING, False),
        (DESCRIPTORS, "needs 2048 descriptors; the limit is 20", True),
        (DESCRIPTORS, "it needs 2048 descriptors; the limit is 20", False),
        ("no namespace: *", "no namespace: unshare failed:\nnot permitted", True),
        ("# " + IO_URING, "# " + IO_URING, False),
        ("", "", False),
    ],
)
def test_a_line_is_a_whole_reason_with_a_star_for_any_text(line: str, reason: str, expected: bool) -> None:
    assert bool(expected_reasons([line]).fullmatch(reason)) is expected


def test_the_expected_reasons_can_be_read() -> None:
    assert expected_reasons((ROOT / "tests/expected_skips.txt").read_text().splitlines()).fullmatch("needs root")
