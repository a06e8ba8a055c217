"""Which text format /metrics answers in, by the Accept header."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.supervisor.admin.exposition import ESCAPINGS, VERSIONS, expose

PLAIN, OPEN = "text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8"


class One(Collector):
    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("relay_reloads", "Reloads.", value=3)


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(One())
    return made


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),
        ("text/plain", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("text/plain; version=1.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text; version=1.0.0", f"{OPEN}; escaping=underscores"),
        ('Application/OpenMetrics-Text; Version="1.0.0"', f"{OPEN}; escaping=underscores"),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8", f"{OPEN}; escaping=allow-utf-8"),
        ("application/openmetrics-text;version=1.0.0;escaping=dots", f"{OPEN}; escaping=underscores"),
        # Versions that there are not, or not yet, and rubbish: what comes next, or the plain one.
        ("application/openmetrics-text;version=0.0.1", PLAIN),
        ("application/openmetrics-text;version=9.0.0", PLAIN),
        ("application/openmetrics-text;version=abc", PLAIN),
        ("text/plain;version=1.x", PLAIN),
        ("application/openmetrics-text;version=abc,application/openmetrics-text", OPEN),
        # Weights.
        ("application/openmetrics-text;q=0.1,text/plain;version=0.0.4;q=0.9", PLAIN),
        ("text/plain;version=0.0.4;q=0.2,application/openmetrics-text;q=0.3", OPEN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=many", PLAIN),
        # Prometheus 2.42 and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            f"{OPEN}; escaping=underscores",
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;"
            "version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2",
            f"{OPEN}; escaping=allow-utf-8",
        ),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(registry: CollectorRegistry, accept: str, media_type: str) -> None:
    body, found = expose(registry, accept)
    assert found == media_type
    is_open = found.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n") == is_open
    assert (b"# TYPE relay_reloads counter" in body) == is_open
    assert b"\nrelay_reloads_total 3.0\n" in body


RANGES = st.builds(
    ";".join,
    st.lists(
        st.sampled_from([*VERSIONS, "*/*", "q=0.5", "q=", "q=nan", "q=-1", "version=1.0.0", "version=", "version=1.x",
                         *(f"escaping={one}" for one in ESCAPINGS), "escaping=\\", "=", " "]),
        max_size=5,
    ),
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.builds(",".join, st.lists(RANGES, max_size=4))))
def test_every_header_has_an_answer(accept: str) -> None:
    registry = CollectorRegistry()
    registry.register(One())
    body, media_type = expose(registry, accept)
    assert media_type.split(";")[0] in VERSIONS
    assert media_type.isascii()
    assert media_type.isprintable()
    assert body.endswith(b"# EOF\n") == media_type.startswith("application/openmetrics-text")
