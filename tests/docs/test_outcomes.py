"""docs/logs.md has every outcome, with its termination state."""

from __future__ import annotations

import pytest

from relay.outcome import OUTCOMES, Outcome
from tests.support.programs import ROOT

LOGS = (ROOT / "docs/logs.md").read_text()


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.label)
def test_every_outcome_is_documented(outcome: Outcome) -> None:
    assert f"| `{outcome.label}` | `{outcome.state}` |" in LOGS
