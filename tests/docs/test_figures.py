"""README's figures are those of docs/performance.md, on both processors."""

from __future__ import annotations

import re

from tests.support.programs import ROOT

SCENARIOS = {
    "message": ("128 B echo, 100 connections", "1 KiB echo, 1,000 connections"),
    "sparse": ("128 B, 1,000 connections, 2,000 messages a second",),
    "connection": ("connect, echo, reset",),
    "memory": ("process memory per idle connection",),
}


def medians(kind: str) -> list[list[float]]:
    """Ratios of the ring engine to HAProxy in each of the two tables: EPYC, Xeon."""
    page = (ROOT / "docs/performance.md").read_text()
    tables = [table.partition("\n\n")[0] for table in page.split("| scenario | HAProxy | ring | stream |\n")[1:]]
    assert len(tables) == 2
    found = []
    for table in tables:
        rows = [line.split(" | ") for line in table.splitlines() if line[2:].startswith(SCENARIOS[kind])]
        assert len(rows) == len(SCENARIOS[kind])
        found.append([float(text) for row in rows for text in re.findall(r"\d\.\d\d", row[2].partition("(")[0])])
    return found


def test_the_sentence_is_true_for_both() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    match = re.search(
        r"on an AMD EPYC and an Intel Xeon: ([\d.]+) times its CPU per message under load, ([\d.]+) and ([\d.]+) where "
        r"messages are sparse, ([\d.]+) and ([\d.]+) per connection; two fifths of the memory per idle one on either",
        readme,
    )
    assert match, "the sentence has other words"
    message, *pairs = map(float, match.groups())
    for processor in (0, 1):
        assert all(abs(ratio - message) <= 0.05 for ratio in medians("message")[processor])
        for kind, said in (("sparse", pairs[processor]), ("connection", pairs[2 + processor])):
            ratios = medians(kind)[processor]
            assert abs(sum(ratios) / len(ratios) - said) <= 0.05, (kind, ratios)
        assert all(abs(ratio - 0.4) <= 0.02 for ratio in medians("memory")[processor])
