"""What `relay status` shows of a relay's numbers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from relay.status_view import duration, render, run, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (1050, "1.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (123_456_789, "123.5 MB"),
        (5_000_000_000, "5.0 GB"),
        (999_999_999_999, "1.0 TB"),
        (12_345_000_000_000_000, "12345.0 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@settings(deadline=None)
@given(st.integers(0, 1 << 63))
def test_a_size_is_never_off_by_more_than_its_rounding(count: int) -> None:
    number, unit = size(count).split()
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(number) * scale - count) <= (0.051 * scale if unit != "B" else 0)
    assert unit == "TB" or float(number) < 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (3600, "1h 0s"),
        (3725, "1h 2m"),
        (90061, "1d 1h"),
        (864000, "10d 0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "state": "ready",
        "reason": "",
        "engine": "stream",
        "pid": 4711,
        "uptime_seconds": 3725.5,
        "max_connections": 20000,
        "connections": {"active": 3, "accepted": 17, "outcomes": {"ok": 13, "idle_timeout": 0, "client_abort": 1}},
        "accept_pauses": 5,
        "log_lines_dropped": 6,
        "listeners": [
            {
                "name": "mqtt",
                "bind": ["0.0.0.0:8883", "[fd00::5]:8883"],
                "upstream": ["hub.example:8883", "[fd00::6]:8883"],
                "active": 3,
                "accepted": 17,
                "bytes_up": 1500,
                "bytes_down": 2_500_000,
            }
        ],
        "upstreams": [
            {
                "name": "hub.example:8883",
                "up": True,
                "addresses": [{"address": "10.0.0.4:8883", "up": True}, {"address": "10.0.0.5:8883", "up": False}],
                "error": "",
                "answer_age_seconds": 75.0,
            },
            {
                "name": "gone.test:1",
                "up": False,
                "addresses": [],
                "error": "no [such] name",
                "answer_age_seconds": 9.0,
            },
            {"name": "[fd00::6]:8883", "up": True, "addresses": [], "error": "", "answer_age_seconds": None},
        ],
        "dial_queue": 0,
        "drain": None,
        "scheduled_events": None,
        "workers": [
            {
                "index": 0,
                "ready": True,
                "hung": False,
                "pid": 4712,
                "active": 3,
                "held_bytes": 4096,
                "loop_lag_seconds": 0.0012,
                "restarts": 0,
            },
            {
                "index": 1,
                "ready": False,
                "hung": False,
                "pid": None,
                "active": 0,
                "held_bytes": 0,
                "loop_lag_seconds": 0.0,
                "restarts": 2,
            },
            {
                "index": 2,
                "ready": True,
                "hung": True,
                "pid": 4714,
                "active": 0,
                "held_bytes": 0,
                "loop_lag_seconds": 0.0,
                "restarts": 0,
            },
        ],
        **changes,
    }


def shown(status: dict[str, Any]) -> str:
    output = io.StringIO()
    console = Console(file=output, width=200, highlight=False)
    for part in render(status):
        console.print(part)
    return output.getvalue()


def row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_the_headline_has_state_engine_and_totals() -> None:
    head, totals, *_ = shown(sample()).splitlines()
    assert head == "relay 1.2.3  ready  engine stream  pid 4711  up 1h 2m"
    assert totals == (
        "connections 3 of 20000 at most, 17 accepted since the start; log lines dropped 6, accept pauses 5"
    )


@pytest.mark.parametrize(
    ("state", "reason", "text"),
    [
        ("ready", "", "ready  engine"),
        ("draining", "draining", "draining  engine"),
        ("unready", "worker 1: not running", "unready (worker 1: not running)  engine"),
        ("unready", "no [red] upstream", "unready (no [red] upstream)  engine"),
    ],
)
def test_a_reason_is_told_where_it_says_more_than_the_state(state: str, reason: str, text: str) -> None:
    assert text in shown(sample(state=state, reason=reason)).splitlines()[0]


def test_each_listener_has_a_row_with_all_its_addresses() -> None:
    text = shown(sample())
    assert row(text, "mqtt") == ["mqtt", "0.0.0.0:8883", "hub.example:8883", "3", "17", "1.5", "kB", "2.5", "MB"]
    assert "[fd00::5]:8883" in text, "brackets are part of the address and no markup"
    assert "[fd00::6]:8883" in text


def test_outcomes_that_did_not_happen_are_left_out() -> None:
    text = shown(sample())
    assert row(text, "ok") == ["ok", "13"]
    assert row(text, "client_abort") == ["client_abort", "1"]
    assert "idle_timeout" not in text


def test_each_worker_has_a_row_with_its_state() -> None:
    text = shown(sample())
    assert row(text, "0") == ["0", "ready", "4712", "3", "4.1", "kB", "1.2", "ms", "0"]
    assert row(text, "1")[:3] == ["1", "starting", "-"]
    assert row(text, "1")[-1] == "2"
    assert row(text, "2")[:2] == ["2", "hung"]


def test_each_upstream_has_its_addresses_their_state_and_its_name_s_age() -> None:
    text = shown(sample())
    assert row(text, "hub.example:8883") == ["hub.example:8883", "10.0.0.4:8883", "up", "1m", "15s", "ago"]
    assert row(text, "10.0.0.5:8883") == ["10.0.0.5:8883", "down"]
    assert row(text, "gone.test:1") == ["gone.test:1", "no", "[such]", "name", "9s", "ago"]


def test_what_is_not_there_has_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", as_json=False) == 1
    error = capsys.readouterr().err
    assert error.startswith("relay: no relay answers at http://127.0.0.1:1/status: ")
    assert "admin.bind" in error
