"""What a worker counts fits into the cells of the shared table, however long connections last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from relay.core import counters
from relay.core.counters import MICRO, Layout
from relay.outcome import OUTCOMES, Outcome
from relay.worker.connection.accounting import Accounting

YEAR = 365 * 86400.0  # seconds
LAYOUT = Layout(listeners=1, upstreams=1, outcomes=len(OUTCOMES))


def test_a_thousand_connections_of_a_year() -> None:
    block = memoryview(bytearray(8 * LAYOUT.size)).cast("Q")
    accounting = Accounting(block, LAYOUT, lambda: 5 * YEAR, None)
    connection: Any = SimpleNamespace(started=4 * YEAR, frontend=SimpleNamespace(index=0))
    for _ in range(1000):
        accounting.accepted(0)
        accounting.closed(connection, Outcome.OK, 0, 0)
    start = LAYOUT.listener(0)
    assert block[start + counters.DURATION_SUM] == 1000 * YEAR * MICRO
    assert counters.unfinished(LAYOUT, block, 0) == 0
