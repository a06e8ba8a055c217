"""Writes the page of state machines: `python -m scripts.diagrams > docs/state-machines.md`.

The transitions come from the code. Those of a connection are the tables of `relay.worker.connection.transitions`. The
table of `relay.core.drain` has functions, which choose the next phase: so its transitions are those that a search
through its states finds. Only the introductions and the drain's conditions are written here. A test compares the page
with this module's output, so that the two cannot drift apart.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from relay.core import drain
from relay.core.drain import Do, Order, Phase
from relay.engines.contract import Close, Event, Refuse
from relay.outcome import Outcome
from relay.worker.connection.record import Found, State
from relay.worker.connection.transitions import ENDS, STEPS

_INTRODUCTION = """\
# State machines

<!-- Generated: python -m scripts.diagrams > docs/state-machines.md -->

Two parts of the relay are transition tables in the code: a client connection and a drain. The diagrams below are made
from these tables. The label of an arrow lists the events that cause the transition. The table below a diagram has every
transition, also those that the diagram omits to stay readable.

## A connection

The tables are `STEPS` and `ENDS` in `relay/worker/connection/transitions.py`. An accepted connection starts at the
black dot: in `prereading` if its listener reads a PROXY header or a TLS hello first, else in `routing`. Some labels are
events that the engine reports (`connected`, `dial_failed`), others are results of the step before (`address`,
`exhausted`). A result is looked up at once, so a connection may pass several states without waiting; it never waits in
`routing`.
"""

_STEPS_TABLE = """
Each transition takes a step in the next state:

"""

_ENDS_DIAGRAM = """
### How a connection ends

Every state has events and results that end the connection. Its outcome is counted in the metrics and written into the
[access log](logs.md#outcomes).
"""

_ENDS_TABLE = """
The columns "client" and "upstream" say how the relay closes each side: FIN after it has delivered what was received,
RST at once, or nothing where the side has reset the connection itself or is not connected yet. Where the outcome is
`failure`, the step before has decided it: why the connection is refused, or how the last dial failed. No transition
leads out of `closed`: after a defect there, the outcome stays what it is.

"""

_DRAIN = """
## A drain

The table is in `relay/core/drain.py`. A drain takes the whole instance out of service. An order starts it, which comes
from a signal, an operator, or a scheduled event of the cloud, and may also end the process. The usual way is down: an
order (`begin`) makes the instance not ready; after the announcement (`time`) it stops accepting and closes its
connections evenly; when none is left (`empty`), it is drained, or ends. `undrain` is an operator's way back,
`called_off` the cloud's, and `hurry` ends the process at once.
"""

_DRAIN_TABLE = """
The supervisor carries out the actions: `announce` (not ready any more), `close` (stop accepting, close the connections
evenly), `resume` (accept again) and `end` (end the process). The condition decides where an event has several effects.

"""

_Arrow = tuple[str, str]
_DrainTransition = tuple[Phase, drain.Event, Phase, tuple[Do, ...]]

_ANNOUNCED = "the announcement is over"
_NOT_ANNOUNCED = "the announcement is not over"
_STILL_EVENT = "the process is to end, or a scheduled event wants the drain as well"
_STILL_ORDER = "the process is to end, or an operator or a signal wants the drain as well"
_NOBODY_ELSE = "nobody else wants the drain"
_GO_ON, _END = "the process is to go on", "the process is to end"
_GONE = "no client can connect any more, and"
_LATE = f"a worker is {drain.LATE:g} s late with closing by force, and"

# The conditions of transitions, for events with several. A test checks that no entry is missing or superfluous.
CONDITIONS: dict[_DrainTransition, str] = {
    (Phase.SERVING, drain.Event.BEGIN, Phase.ANNOUNCING, (Do.ANNOUNCE,)): "the order has an announcement",
    (Phase.SERVING, drain.Event.BEGIN, Phase.CLOSING, (Do.ANNOUNCE, Do.CLOSE)): "the order has no announcement",
    (Phase.ANNOUNCING, drain.Event.BEGIN, Phase.ANNOUNCING, ()): _NOT_ANNOUNCED,
    (Phase.ANNOUNCING, drain.Event.BEGIN, Phase.CLOSING, (Do.CLOSE,)): _ANNOUNCED,
    (Phase.ANNOUNCING, drain.Event.TIME, Phase.ANNOUNCING, ()): _NOT_ANNOUNCED,
    (Phase.ANNOUNCING, drain.Event.TIME, Phase.CLOSING, (Do.CLOSE,)): _ANNOUNCED,
    (Phase.CLOSING, drain.Event.BEGIN, Phase.CLOSING, ()): "the new order ends no sooner",
    (Phase.CLOSING, drain.Event.BEGIN, Phase.CLOSING, (Do.CLOSE,)): "the new order ends sooner",
    (Phase.CLOSING, drain.Event.TIME, Phase.CLOSING, ()): "no worker is late",
    (Phase.CLOSING, drain.Event.TIME, Phase.DRAINED, ()): f"{_LATE} {_GO_ON}",
    (Phase.CLOSING, drain.Event.TIME, Phase.ENDED, (Do.END,)): f"{_LATE} {_END}",
    (Phase.CLOSING, drain.Event.EMPTY, Phase.CLOSING, ()): "a client may still be about to connect",
    (Phase.CLOSING, drain.Event.EMPTY, Phase.DRAINED, ()): f"{_GONE} {_GO_ON}",
    (Phase.CLOSING, drain.Event.EMPTY, Phase.ENDED, (Do.END,)): f"{_GONE} {_END}",
    (Phase.DRAINED, drain.Event.BEGIN, Phase.DRAINED, ()): _GO_ON,
    (Phase.DRAINED, drain.Event.BEGIN, Phase.ENDED, (Do.END,)): _END,
}
for _phase in (Phase.ANNOUNCING, Phase.CLOSING, Phase.DRAINED):
    CONDITIONS |= {
        (_phase, drain.Event.UNDRAIN, _phase, ()): _STILL_EVENT,
        (_phase, drain.Event.UNDRAIN, Phase.SERVING, (Do.RESUME,)): _NOBODY_ELSE,
        (_phase, drain.Event.CALLED_OFF, _phase, ()): _STILL_ORDER,
        (_phase, drain.Event.CALLED_OFF, Phase.SERVING, (Do.RESUME,)): _NOBODY_ELSE,
    }


def page() -> str:
    """The whole page, as Markdown."""
    return "".join(
        [
            _INTRODUCTION,
            _diagram(_step_arrows(), direction="LR"),
            _STEPS_TABLE,
            _table(("state", "event or result", "next state", "step", "what it does"), _step_rows()),
            _ENDS_DIAGRAM,
            _diagram(_end_arrows(), width=_WIDE),
            _ENDS_TABLE,
            _table(("state", "event or result", "client", "upstream", "outcome"), _end_rows()),
            _DRAIN,
            _diagram(_drain_arrows()),
            _DRAIN_TABLE,
            _table(("phase", "event", "next phase", "condition", "actions"), _drain_rows()),
        ]
    )


# --- a connection -----------------------------------------------------------------------------------------------------


_STATES = list(State)


def _step_arrows() -> dict[_Arrow, list[str]]:
    arrows: dict[_Arrow, list[str]] = defaultdict(list)
    arrows["[*]", State.PREREADING.value].append("accepted, to preread")
    arrows["[*]", State.ROUTING.value].append("accepted")
    for (state, event), (following, _, _) in STEPS.items():
        arrows[state.value, following.value].append(event.value)
    return arrows


def _step_rows() -> Iterator[tuple[str, ...]]:
    for (state, event), (following, step, _) in STEPS.items():
        yield _code(state), _code(event), _code(following), f"`{step.__name__}`", _first_line(step)


def _end_arrows() -> dict[_Arrow, list[str]]:
    arrows: dict[_Arrow, list[str]] = defaultdict(list)
    for state, event in sorted(ENDS, key=lambda end: _STATES.index(end[0])):
        if state is not State.CLOSED:
            arrows[state.value, State.CLOSED.value].append(event.value)
    return arrows


def _end_rows() -> Iterator[tuple[str, ...]]:
    """One row for each event with the same end; it names all states that have it."""
    states: dict[tuple[Event | Found, Refuse | Close, Outcome | None], list[State]] = defaultdict(list)
    for (state, event), (action, outcome) in sorted(ENDS.items(), key=lambda end: _STATES.index(end[0][0])):
        states[event, action, outcome].append(state)
    for (event, action, outcome), which in states.items():
        client = "RST" if isinstance(action, Refuse) or action.reset_client else "FIN"
        upstream = "RST" if isinstance(action, Close) and action.reset_upstream else "FIN"
        yield (
            ", ".join(map(_code, which)),
            _code(event),
            client if event is not Event.CLIENT_RESET else "",
            upstream if State.PUMPING in which and event is not Event.UPSTREAM_RESET else "",
            f"`{outcome.label}`" if outcome is not None else "`failure`",
        )


def _first_line(step: Callable[..., object]) -> str:
    return (inspect.getdoc(step) or "").partition("\n")[0].rstrip(".")


# --- a drain ----------------------------------------------------------------------------------------------------------

_WAITS = 0.0, 1.0, 100.0  # seconds before an event: none, some, and more than any time limit of the orders
_ORDERS = [
    Order(announce, 60.0, ends, "reason", left, lasts)
    for announce, ends, left, lasts in itertools.product((0.0, 10.0), (False, True), (None, 0.0), (False, True))
]


def drain_transitions() -> list[_DrainTransition]:
    """Find the transitions of a drain: take `drain.step` for every event in every state that can be reached."""
    start = drain.State()
    found: set[_DrainTransition] = set()
    seen = {_situation(start, 0.0)}
    pending = [(start, 0.0)]
    while pending:
        state, time = pending.pop()
        for event, wait in itertools.product(drain.Event, _WAITS):
            now = time + wait
            for order in _ORDERS if event is drain.Event.BEGIN else [None]:
                following, actions = drain.step(state, event, now, order)
                found.add((state.phase, event, following.phase, actions))
                situation = _situation(following, now)
                if situation not in seen:
                    seen.add(situation)
                    pending.append((following, now))
    return sorted(found, key=_in_order)


def _situation(state: drain.State, now: float) -> tuple[object, ...]:
    """What a state's transitions depend on; of its times, only after which of the waits they have passed."""
    times = state.announced_at, state.settled_at, state.over_at, state.over_at + drain.LATE
    passed = [sum(time > now + wait for wait in _WAITS) for time in times]
    return state.phase, state.ends, state.lasts, bool(state.event), *passed


def _in_order(transition: _DrainTransition) -> tuple[int, ...]:
    phase, event, following, actions = transition
    phases, events, does = list(Phase), list(drain.Event), list(Do)
    return phases.index(phase), events.index(event), phases.index(following), *map(does.index, actions)


def _drain_arrows() -> dict[_Arrow, list[str]]:
    arrows: dict[_Arrow, list[str]] = defaultdict(list)
    arrows["[*]", Phase.SERVING.value].append("")
    for phase, event, following, _ in drain_transitions():
        labels = arrows[phase.value, following.value] if following is not phase else []
        if event.value not in labels:
            labels.append(event.value)
    arrows[Phase.ENDED.value, "[*]"].append("")
    return arrows


def _drain_rows() -> Iterator[tuple[str, ...]]:
    """One row for each phase, next phase, condition and actions; it names all events that have them."""
    rows: dict[tuple[Phase, Phase, str, tuple[Do, ...]], list[drain.Event]] = defaultdict(list)
    for phase, event, following, actions in drain_transitions():
        condition = CONDITIONS.get((phase, event, following, actions), "")
        rows[phase, following, condition, actions].append(event)
    for (phase, following, condition, actions), events in rows.items():
        names = ", ".join(map(_code, events))
        yield _code(phase), names, _code(following), condition, ", ".join(map(_code, actions))


# --- Markdown and Mermaid ---------------------------------------------------------------------------------------------

# Characters in a line of a label. Narrow labels do not overlap where arrows are close; Mermaid itself wraps wide ones.
_NARROW, _WIDE = 12, 20


def _diagram(arrows: Mapping[_Arrow, Sequence[str]], *, width: int = _NARROW, direction: str = "TB") -> str:
    lines = ["", "```mermaid", "stateDiagram-v2", f"    direction {direction}"]
    for (start, end), labels in arrows.items():
        label = _wrapped(labels, width)
        lines.append(f"    {start} --> {end}: {label}" if label else f"    {start} --> {end}")
    return "".join(f"{line}\n" for line in [*lines, "```"])


def _wrapped(words: Iterable[str], width: int) -> str:
    """Join the words with commas; a line break comes before a word that would make its line too long."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines[-1] += ","
            lines.append(word)
        else:
            lines[-1] += f", {word}" if lines[-1] else word
    return "<br>".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(member: Enum) -> str:
    return f"`{member.value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
