"""The limits' code as a graph of a worker's local states, made from the real code as far as somebody asks.

A local state is recognised by the stack that `Paused` was raised from (functions, lines, local variables) and by the
last answers, which are what Python's value stack can hold. So loops that wait are circles in a finite graph, and all
that workers can come to can be explored without a bound on preemptions. That states taken for the same do go on alike
is checked in test_limits_interleavings.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from relay.core import limits
from relay.core.limits import Limits, Refusal
from tests.core.stepping import WRITE, Access, Ended, Operation, Paused, Place, Release, System


@dataclass(eq=False, slots=True)
class Local:
    """A worker's local state: where it is in its program, and the access that it makes next (None: it has ended)."""

    index: int
    column: int
    program: tuple[Operation, ...]  # what is left, the operation under way first
    held: tuple[Place, ...]
    tape: tuple[int, ...]
    access: Access | None
    begun: bool  # something was written in the operation under way
    edges: dict[int, tuple[Local, Ended | None]] = field(default_factory=dict, repr=False)

    @property
    def owned(self) -> tuple[Place, ...]:
        """The leases that hold a connection: not the one that is being given back."""
        giving_back = self.begun and isinstance(self.program[0], Release)
        return self.held[1:] if giving_back else self.held


class Automaton:
    """The code under test as a graph of local states, made from the real code as far as somebody asks."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._known: dict[object, Local] = {}
        self.locals: list[Local] = []

    def start(self, column: int, program: tuple[Operation, ...], held: tuple[Place, ...] = ()) -> Local:
        local, _ = self.reach(column, program, held, (), False)
        return local

    def answer(self, local: Local, value: int) -> tuple[Local, Ended | None]:
        """The state after the access was answered, and the operation that ended with it."""
        edge = local.edges.get(value)
        if edge is None:
            assert local.access is not None
            begun = local.begun or local.access.kind == WRITE
            edge = self.reach(local.column, local.program, local.held, (*local.tape, value), begun)
            local.edges[value] = edge
        return edge

    def reach(
        self,
        column: int,
        program: tuple[Operation, ...],
        held: tuple[Place, ...],
        tape: tuple[int, ...],
        begun: bool,
    ) -> tuple[Local, Ended | None]:
        """The state that the tape leads to, and the operation that ended just before, if one did."""
        ended = None
        while program:
            answers = iter(tape)
            try:
                result = self.system.run(column, program[0], held, partial(_next, answers))
            except Paused as paused:
                position = _position(paused.__traceback__)
                recent = tape[-self.system.plan.workers :]
                key = (column, program, held, begun, paused.access, position, recent)
                made = Local(len(self.locals), column, program, held, tape, paused.access, begun)
                return self._intern(key, made), ended
            assert not list(answers), "not the same way as before"
            ended = Ended(program[0], result)
            held = self.system.outcome(program[0], held, result)
            program, tape, begun = program[1:], (), False
        return self._intern((column, held), Local(len(self.locals), column, (), held, (), None, False)), ended

    def _intern(self, key: object, made: Local) -> Local:
        """The state with this key: the one that is known, else the one just made."""
        known = self._known.setdefault(key, made)
        if known is made:
            self.locals.append(made)
        return known


def _next(answers: Iterator[int], access: Access) -> int:
    answer = next(answers, None)
    if answer is None:
        raise Paused(access)
    return answer


def _position(trace: TracebackType | None) -> tuple[object, ...]:
    """Where in the limits' code the stack stands: functions, lines, and the variables that decide what follows."""
    found: list[object] = []
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == limits.__name__ or isinstance(frame.f_locals.get("self"), Limits):
            found.append((frame.f_code.co_qualname, trace.tb_lineno))
            # `_` counts how often was looked; it decides nothing before the limit of looks is reached.
            found.extend((k, _frozen(v)) for k, v in frame.f_locals.items() if k != "_")
        trace = trace.tb_next
    return tuple(found)


def _frozen(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, int | tuple | range | Refusal | None) else type(value).__name__
