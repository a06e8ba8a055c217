"""The shape of the table that test_shared_table.py shares with another process."""

from __future__ import annotations

from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan

PLAN = LimitPlan(workers=2, instance=3, capacity=3, listeners=(0,), per_source=2, source_buckets=64)
LAYOUT = Layout(listeners=2, upstreams=3, outcomes=5)
