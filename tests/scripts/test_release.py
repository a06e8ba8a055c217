"""What `make release` refuses to tag."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from relay.settings.names import Renamed
from scripts.release import CHART, changelog_problems, old_name_problems, order, placeholders, problems, sections
from tests.support.programs import ROOT

TODAY = datetime.date(2026, 12, 1)
CHANGELOG = """\
# Changelog

Words before the first section.

## Unreleased

## 0.2.0 - 2026-11-30

### Added
- Something.

## 0.1.0 - 2026-10-01

### Added
- Everything.
"""


def test_a_dated_section_with_entries_can_be_released() -> None:
    assert changelog_problems("0.2.0", CHANGELOG, TODAY) == []


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("## Unreleased\n", "## Unreleased\n\n- Late.\n", "`## Unreleased` still has entries"),
        ("## 0.2.0 - 2026-11-30", "## 0.2.1 - 2026-11-30", "no section `## 0.2.0 - 2026-12-01`"),
        ("## 0.2.0 - 2026-11-30", "## 0.2.0", "has no date"),
        ("## 0.2.0 - 2026-11-30", "## 0.2.0 - 2026-11-31", "has no date"),
        ("## 0.2.0 - 2026-11-30", "## 0.2.0 - 2026-12-02", "is in the future"),
        ("### Added\n- Something.\n", "", "is empty"),
    ],
)
def test_any_other_changelog_cannot(before: str, after: str, problem: str) -> None:
    (found,) = changelog_problems("0.2.0", CHANGELOG.replace(before, after, 1), TODAY)
    assert problem in found


def test_sections_are_found_by_their_headings() -> None:
    assert sections(CHANGELOG) == {
        "Unreleased": "",
        "0.2.0 - 2026-11-30": "### Added\n- Something.",
        "0.1.0 - 2026-10-01": "### Added\n- Everything.",
    }


def test_versions_have_an_order() -> None:
    versions = ["0.1.0a1", "0.1.0b1", "0.1.0rc1", "0.1.0rc2", "0.1.0", "0.1.1", "0.2.0", "0.10.0", "1.0.0rc1", "1.0.0"]
    assert sorted(sorted(versions), key=order) == versions


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-rc1", "1.0.0rc", "Unreleased"]
)
def test_other_words_are_no_versions(version: str) -> None:
    with pytest.raises(ValueError):
        order(version)
    assert "is no version" in problems(version, TODAY)[0]


def test_what_git_and_the_tree_say_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"status": " M relay/cli.py", "tag": "v98.0.0\nv99.0.0\nvery-old"}
    monkeypatch.setattr("scripts.release.git", lambda command, *_arguments: answers[command])
    found = problems("99.0.0", TODAY)
    assert "the working tree is not clean: relay/cli.py" in found
    assert "relay/__init__.py: __version__ is not 99.0.0" in found
    assert "there is a tag v99.0.0, which is not older than v99.0.0" in found
    assert {problem.partition(", not ")[2] for problem in found if problem.startswith(CHART)} == {"99.0.0"}
    found_for_candidate = problems("99.0.0rc1", TODAY)
    assert {one.partition(", not ")[2] for one in found_for_candidate if one.startswith(CHART)} == {
        "99.0.0-rc1",
        "99.0.0rc1",
    }
    assert not any("v98.0.0" in problem or "very-old" in problem for problem in found)


def test_an_old_name_of_a_setting_ends_with_its_version() -> None:
    renamed = {"limits.most": Renamed("limits.max_connections", "0.3.0")}
    assert old_name_problems("0.2.9", renamed) == []
    assert old_name_problems("0.3.0rc1", renamed) == []
    for version in ("0.3.0", "0.10.0"):
        (found,) = old_name_problems(version, renamed)
        assert found == "relay/settings/names.py: limits.most ends with version 0.3.0: take its line out"


def test_placeholders_are_refused_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "deploy/deb").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('a = 1  # OWNER\nRepository = "https://github.com/OWNER/relay"\n')
    (tmp_path / "deploy/deb/control").write_text("Package: relay\nMaintainer: X <OWNER@example.org>\nOWNERS: 1\n")
    found = [problem.partition(": ")[0] for problem in placeholders(tmp_path)]
    assert found == ["pyproject.toml:2", "deploy/deb/control:2"]


def test_this_tree_names_nobody_elses_address() -> None:
    """Until somebody publishes it, every address of the project is a placeholder, and `make release` refuses them."""
    addresses = re.findall(r"github\.com/(\w+)/relay", (ROOT / "pyproject.toml").read_text())
    addresses += re.findall(r"^Maintainer:.*<(\w+)@", (ROOT / "deploy/deb/control").read_text(), re.MULTILINE)
    assert len(addresses) >= 5
    placed = {problem.partition(":")[0] for problem in placeholders(ROOT)}
    assert ("OWNER" in addresses) is bool(placed)
