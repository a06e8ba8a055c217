"""The commands of a how-to, for tests that run them as they stand there."""

from __future__ import annotations

from tests.docs.blocks import FENCED
from tests.support.programs import ROOT


def script(page: str, section: str) -> str:
    """All commands of a section of docs/how-to/, in order."""
    text = (ROOT / "docs/how-to" / page).read_text()
    _, heading, rest = text.partition(f"\n## {section}\n")
    assert heading, f"{page} has no section {section}"
    found = [match[3] for match in FENCED.finditer(rest.partition("\n## ")[0]) if match[2] == "sh"]
    assert found, f"{page}: {section} has no commands"
    return "".join(found)
