"""docs/state-machines.md is what scripts/diagrams.py writes, and has every transition of the code."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import drain
from relay.core.drain import Event, Order, Phase
from relay.worker.connection.record import State
from relay.worker.connection.transitions import ENDS, STEPS
from scripts.diagrams import CONDITIONS, drain_transitions, page
from tests.support.programs import ROOT

PAGE = (ROOT / "docs/state-machines.md").read_text()
STEPS_PART, ENDS_PART, DRAIN_PART = re.split(r"^##+ (?:How a connection ends|A drain)$", PAGE, flags=re.MULTILINE)
DIAGRAM = re.compile(r"```mermaid\nstateDiagram-v2\n    direction (?:LR|TB)\n(.*?)```", re.DOTALL)
ARROW = re.compile(r"    (\[\*\]|[a-z]+) --> (\[\*\]|[a-z]+)(?:: ([a-z_, ]|<br>)+)?")


def rows(part: str) -> list[list[str]]:
    """The cells of the part's table, without its heading."""
    return [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]


def codes(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_page_is_what_the_script_writes() -> None:
    assert page() == PAGE, "python -m scripts.diagrams > docs/state-machines.md"


def test_every_step_is_in_the_table() -> None:
    found = [tuple(codes(cell)[0] for cell in row[:4]) for row in rows(STEPS_PART)]
    assert Counter(found) == Counter(
        (state.value, event.value, following.value, step.__name__)
        for (state, event), (following, step, _) in STEPS.items()
    )


def test_every_end_is_in_the_table() -> None:
    found = [
        (state, event, codes(outcome)[0])
        for states, events, _, _, outcome in rows(ENDS_PART)
        for state in codes(states)
        for event in codes(events)
    ]
    assert Counter(found) == Counter(
        (state.value, event.value, outcome.label if outcome is not None else "failure")
        for (state, event), (_, outcome) in ENDS.items()
    )


def test_every_phase_and_event_of_a_drain_is_in_the_table() -> None:
    found = {(phase, event) for row in rows(DRAIN_PART) for phase in codes(row[0]) for event in codes(row[1])}
    assert found == {(phase.value, event.value) for phase in Phase for event in Event}


def test_conditions_are_those_of_events_with_several_effects() -> None:
    effects = Counter((phase, event) for phase, event, _, _ in drain_transitions())
    assert set(CONDITIONS) == {found for found in drain_transitions() if effects[found[:2]] > 1}


ORDERS = st.builds(
    Order,
    announce=st.sampled_from([0.0, 5.0, 15.0]),
    window=st.sampled_from([0.0, 30.0, 300.0]),
    ends=st.booleans(),
    reason=st.just("reason"),
    left=st.sampled_from([None, 0.0, 8.0, 600.0]),
    lasts=st.booleans(),
)


KNOWN = frozenset(drain_transitions())


@given(st.lists(st.tuples(st.sampled_from(Event), st.sampled_from([0.0, 0.5, 2.0, 30.0, 400.0]), ORDERS), max_size=12))
def test_a_drain_makes_no_other_transition(events: list[tuple[Event, float, Order]]) -> None:
    state, now = drain.State(), 1000.0
    for event, seconds, order in events:
        now += seconds
        following, actions = drain.step(state, event, now, order if event is Event.BEGIN else None)
        assert (state.phase, event, following.phase, actions) in KNOWN
        state = following


@pytest.mark.parametrize("part", [STEPS_PART, ENDS_PART, DRAIN_PART], ids=["steps", "ends", "drain"])
def test_diagrams_are_small_and_well_formed(part: str) -> None:
    """Of Mermaid's grammar only arrows are used, from states of the code and with short labels."""
    (diagram,) = DIAGRAM.findall(part)
    arrows = diagram.splitlines()
    assert 3 <= len(arrows) <= 15
    names = {state.value for state in State} | {phase.value for phase in Phase} | {"[*]"}
    for line in arrows:
        match = ARROW.fullmatch(line)
        assert match, line
        assert {match[1], match[2]} <= names
    assert len({line.partition(":")[0] for line in arrows}) == len(arrows), "one arrow from a state to another"
