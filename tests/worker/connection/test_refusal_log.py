"""Refusals in aggregate: what is written adds up to what came, and what is kept is bounded."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from relay.outcome import OUTCOMES, Outcome
from relay.worker.connection.access_log import AccessLog, Record
from relay.worker.connection.refusal_log import MAX_KINDS, PERIOD, RefusalLog


@dataclass
class Desk:
    """A refusal log with a clock in the hand, and what it has written."""

    log_format: str = "json"
    now: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        line = AccessLog(self.lines.append, ["hub.example:8883"], self.log_format)
        self.log = RefusalLog(line, self.lines.append, self.log_format, lambda: self.now)

    def refuse(self, outcome: Outcome, host: str = "192.0.2.1", listener: str = "mqtt") -> None:
        fields: dict[str, Any] = dict.fromkeys(("target", "hello", "header", "source", "error"))
        fields |= {
            "client": (host, 4711),
            "frontend": SimpleNamespace(index=0, name=listener, route_name=""),
            "bytes_up": 3,
        }
        fields |= {"customer_name": "", "bytes_down": 0, "started": 0.0, "dialed": 0.0, "connected": 0.0}
        self.log(cast(Record, SimpleNamespace(**fields)), outcome, 0.001)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.log.tick(self.now)

    def written(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


HOSTS = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])


@given(
    st.lists(
        st.one_of(st.tuples(st.sampled_from(OUTCOMES), HOSTS, st.sampled_from(["mqtt", "https"])), st.floats(0, 30)),
        max_size=200,
    )
)
def test_lines_and_counts_add_up(steps: list[tuple[Outcome, str, str] | float]) -> None:
    desk, expected = Desk(), Counter[tuple[str, str, str]]()
    for step in steps:
        if isinstance(step, float):
            desk.pass_time(step)
        else:
            outcome, host, listener = step
            desk.refuse(outcome, host, listener)
            expected[outcome.label, host, listener] += 1
    desk.log.flush()
    found, whole = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    up = 0
    for line in desk.written():
        host = line["client"].rpartition(":")[0].strip("[]") if line["event"] == "connection" else line["client"]
        found[line["outcome"], host, line["listener"]] += line.get("count", 1)
        up += line["bytes_up"]
        if line["event"] == "connection":
            whole[line["outcome"], host, line["listener"]] += 1
    assert found == expected
    assert up == 3 * expected.total()
    for outcome in OUTCOMES:
        if not outcome.early:
            assert all(whole[key] == n for key, n in expected.items() if key[0] == outcome.label), "each has its line"


def test_who_goes_on_is_told_of_once_a_period_and_who_comes_back_later_has_a_line_again() -> None:
    desk = Desk()
    for _ in range(5):
        for _ in range(1000):
            desk.refuse(Outcome.REFUSED_ACCESS)
        desk.pass_time(PERIOD)
    assert [line.get("count") for line in desk.written()] == [None, 999, 1000, 1000, 1000, 1000]
    assert desk.written()[1]["seconds"] == PERIOD
    desk.pass_time(PERIOD)
    desk.refuse(Outcome.REFUSED_ACCESS)
    assert desk.written()[-1]["event"] == "connection"


def test_a_flood_of_addresses_is_a_thousand_lines_and_a_count() -> None:
    desk = Desk()
    for number in range(5 * MAX_KINDS):
        desk.refuse(Outcome.REFUSED_SNI, f"2001:db8::{number:x}")
    assert len(desk.lines) == MAX_KINDS
    desk.log.flush()
    (last,) = desk.written()[MAX_KINDS:]
    assert (last["client"], last["count"], last["outcome"]) == ("", 4 * MAX_KINDS, "refused_sni")


def test_for_people() -> None:
    desk = Desk("console")
    for _ in range(3):
        desk.refuse(Outcome.REFUSED_ACCESS)
    desk.pass_time(PERIOD)
    assert desk.lines[-1].endswith("mqtt: 192.0.2.1 refused_access (PR) 2 more in 10 s\n")
