"""Times in lines for people."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.log_writer import local_timestamp
from relay.worker.connection.access_log import span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 ms"),
        (0.000871, "0.87 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1m 0s"),
        (2712.443081, "45m 12s"),
        (3600.0, "1h 0m"),
        (90061.0, "1d 1h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.floats(0, 1e9))
def test_a_span_is_never_off_by_more_than_its_rounding(seconds: float) -> None:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    parts = re.findall(r"(\d+(?:\.\d+)?) ?([a-z]+)", span(seconds))
    value = sum(float(number) * units[unit] for number, unit in parts)
    least = units[parts[-1][1]]
    assert abs(value - seconds) <= least * 1.001
    assert len(parts) <= 2


@given(st.integers(0, 4_000_000_000_000))
def test_local_time_is_that_moment(milliseconds: int) -> None:
    text = local_timestamp(milliseconds / 1000)
    moment = time.mktime(time.strptime(text[:19], "%Y-%m-%d %H:%M:%S"))
    assert time.strftime("%z", time.localtime(milliseconds // 1000)) == text[24:]
    # An hour is twice in autumn, and the offset says which one.
    assert abs(moment - milliseconds // 1000) in (0, 3600)
