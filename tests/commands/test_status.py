"""What `relay status` shows of a relay's numbers."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from relay.commands.format import duration, size
from relay.commands.status import run, show, terminal


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


def sample(**changes: Any) -> Any:
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


def shown(status: Any, width: int = 200) -> str:
    output = io.StringIO()
    show(status, Console(file=output, width=width, highlight=False, emoji=False))
    return output.getvalue()


def row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_the_headline_has_state_engine_and_totals() -> None:
    head, totals, losses, *_ = shown(sample()).splitlines()
    assert head == "relay 1.2.3  ready  engine stream  pid 4711  up 1h 2m"
    assert totals == "connections 3 of 20000 at most, 17 accepted since the start"
    assert losses == "log lines dropped 6, accept pauses 5"


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


LONG = "a-hub-with-the-longest-name-that-azure-allows-for-one-0123456789.azure-devices.net"


def large() -> Any:
    """Names and addresses as long as they may be, or look like something else to rich."""
    listeners = [
        {
            "name": name,
            "bind": [f"0.0.0.0:{port}", f"[fd00:1234:5678:9abc:def0:100:b:a]:{port}"],
            "upstream": [f"{LONG}:{port}"],
            "active": 120_345,
            "accepted": 12_345_678,
            "bytes_up": 1_500_000_000,
            "bytes_down": 25_000_000_000,
        }
        for name, port in (("https", 443), ("mqtt", 8883))
    ]
    upstreams = [
        {
            "name": f"{LONG}:8883",
            "up": True,
            "addresses": [{"address": "10.111.112.113:8883", "up": True},
                          {"address": "[fd00:1234:5678:9abc:def0:100:b:a]:8883", "up": False}],
            "error": "",
            "answer_age_seconds": 75.0,
        },
        {"name": f"{LONG}:443", "up": False, "addresses": [], "error": "no such name", "answer_age_seconds": None},
        {"name": "[fd00:a:1234::1]:443", "up": True, "addresses": [{"address": "[fd00:a:1234::1]:443", "up": True}],
         "error": "", "answer_age_seconds": None},
    ]  # fmt: skip
    return sample(listeners=listeners, upstreams=upstreams)


@given(st.integers(20, 300))
def test_no_name_or_address_is_torn_or_cut_however_narrow_the_terminal(width: int) -> None:
    status = large()
    text = shown(status, width)
    words = {word for item in status["listeners"] for word in (item["name"], *item["bind"], *item["upstream"])}
    words |= {one["address"] for item in status["upstreams"] for one in item["addresses"]}
    words |= {item["name"] for item in status["upstreams"]} | {"12345678", "25.0 GB", "no such name", "1m 15s ago"}
    for word in words:
        assert word in text, (width, word)
    for word in ("listener", "accepted", "upstream", "resolved", "client_abort", "restarts", "dropped"):
        assert word in text, (width, word)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_lines_are_no_longer_than_the_terminal_where_that_can_be(width: int) -> None:
    text = shown(sample(), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    head, *_ = text.splitlines()
    assert head.startswith("relay 1.2.3  ready")


def test_a_name_says_when_it_was_resolved_and_nothing_if_it_never_was() -> None:
    for width in (80, 200):
        lines = shown(large(), width).splitlines()
        (held,) = [line for line in lines if "1m 15s ago" in line]
        assert f"{LONG}:8883" in held
        (never,) = [line for line in lines if "no such name" in line]
        assert never.rstrip().endswith("no such name")
        assert sum(" ago" in line for line in lines) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_no_terminal_gets_whole_rows_and_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    show(large(), terminal())
    assert "\x1b" not in pipe.getvalue()
    row = next(line for line in pipe.getvalue().splitlines() if line.startswith("https"))
    assert row.split() == ["https", "0.0.0.0:443", f"{LONG}:443", "120345", "12345678", "1.5", "GB", "25.0", "GB"]


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_colours_unless_it_asks_for_none(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    show(large(), terminal())
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", screen.getvalue())) != no_color


def test_what_is_not_there_has_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", as_json=False) == 1
    error = capsys.readouterr().err
    assert error.startswith("relay: no relay answers at http://127.0.0.1:1/status: ")
    assert "admin.bind" in error


def test_routes_have_a_table_of_their_own() -> None:
    """Not in the answer of an older relay."""
    status = sample()
    counted = {"active": 1, "accepted": 22, "bytes_up": 3000, "bytes_down": 4}
    status["listeners"][0]["routes"] = [
        {"name": "dps", "state": "backup", **counted},
        {"name": "myhub.device", "state": "off", **counted},
    ]
    rows = [line.split() for line in shown(status).splitlines() if line.startswith("mqtt.")]
    assert rows == [
        ["mqtt.dps", "backup", "1", "22", "3.0", "kB", "4", "B"],
        ["mqtt.myhub.device", "off", "1", "22", "3.0", "kB", "4", "B"],
    ]
    assert "route" not in shown(sample())


def test_customers_with_most_connections_have_a_table_of_their_own() -> None:
    status = sample()
    counted = {"accepted": 700, "bytes_up": 3000, "bytes_down": 4}
    status["customers"] = [
        {"name": f"c{n}", "active": n, "max_connections": n % 2, "refused": {"a": n // 5, "b": n // 5}, **counted}
        for n in range(22)
    ]
    text = shown(status)
    rows = [line.split() for line in text.splitlines() if line.startswith("c") and line[1].isdigit()]
    assert [row[0] for row in rows] == [f"c{n}" for n in range(21, 1, -1)]
    assert rows[0] == ["c21", "1", "8", "21", "700", "3.0", "kB", "4", "B"]
    assert rows[-1] == ["c2", "2", "700", "3.0", "kB", "4", "B"]
    assert "and 2 customers with fewer connections" in text
    assert "customer" not in shown(sample())
