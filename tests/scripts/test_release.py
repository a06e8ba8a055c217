"""What `make release` refuses to tag."""

from __future__ import annotations

import datetime

import pytest

from scripts.release import changelog_problems, order, problems, sections

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
    assert not any("v98.0.0" in problem or "very-old" in problem for problem in found)
