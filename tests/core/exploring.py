"""Goes through every state that workers can come to together, and checks the limits' promises in each.

In every state: no limit is exceeded by the leases that are held. At every refusal: at some moment since the acquire
began, the limit that it names was reached by leases of others that were held for certain. At the end: the table says
what is held and nothing else. And from every state the end can be reached: nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from relay.core.limits import Refusal
from tests.core.automaton import Automaton, Local
from tests.core.promises import Violation, check_limits, reached_limits, table_of
from tests.core.stepping import FENCE, READ, WRITE, Access, Acquire, Clear, Ended, Operation, System

T = TypeVar("T")

Buffer = tuple[tuple[int, int], ...]


class State(NamedTuple):
    memory: tuple[int, ...]
    buffers: tuple[Buffer, ...]  # per worker: writes not yet in the memory, oldest first
    locals: tuple[int, ...]
    reached: tuple[frozenset[Refusal], ...]  # per worker: limits that were reached since its acquire began
    killed: bool


@dataclass
class Explored:
    states: int
    admitted: set[int]  # how many leases were held at the end, over all schedules
    ends: int
    stuck: int  # states that the end cannot be reached from


class Explorer:
    """`kill` is the column of a worker that may die at any point; then its column is cleared and `after` runs in it."""

    def __init__(
        self,
        system: System,
        programs: list[tuple[Operation, ...]],
        *,
        buffered: bool = False,
        kill: int | None = None,
        after: tuple[Operation, ...] = (),
        check_refusals: bool = True,
    ) -> None:
        self.system = system
        self.plan = system.plan
        self.automaton = Automaton(system)
        self.programs = programs
        self.buffered = buffered
        self.kill = kill
        self.after = after
        self.check_refusals = check_refusals

    def run(self) -> Explored:
        """Raises Violation."""
        nobody: tuple[Buffer, ...] = ((),) * self.plan.workers
        memory = (0,) * self.system.size
        first_locals = [
            self._past_private(memory, (), self.automaton.start(column, program))[0]
            for column, program in enumerate(self.programs)
        ]
        none: tuple[frozenset[Refusal], ...] = (frozenset(),) * self.plan.workers
        start = State(memory, nobody, tuple(local.index for local in first_locals), none, False)
        numbers = {start: 0}
        parents: list[tuple[int, str]] = [(0, "start")]
        before: list[list[int]] = [[]]
        todo = [start]
        ends: list[int] = []
        admitted: set[int] = set()
        while todo:
            state = todo.pop()
            number = numbers[state]
            try:
                moves = list(self._moves(state))
                if not moves:
                    self._check_end(state)
                    ends.append(number)
                    admitted.add(sum(len(local.held) for local in self._locals(state)))
            except Violation as violation:
                raise Violation(f"{violation}\n{_schedule(parents, number)}") from None
            for name, following in moves:
                known = numbers.get(following)
                if known is None:
                    known = numbers[following] = len(parents)
                    parents.append((number, name))
                    before.append([])
                    todo.append(following)
                before[known].append(number)
        return Explored(len(parents), admitted, len(ends), len(parents) - _leading_to(ends, before))

    def _locals(self, state: State) -> list[Local]:
        known = self.automaton.locals
        return [known[index] for index in state.locals]

    def _moves(self, state: State) -> Iterator[tuple[str, State]]:
        workers = self._locals(state)
        for column, local in enumerate(workers):
            buffer = state.buffers[column]
            if buffer:
                yield f"{column}: its oldest write reaches memory", self._flush(state, column)
            if local.access is None or (local.access.kind == FENCE and buffer):
                continue
            yield f"{column}: {_text(local.access)}", self._step(state, workers, column, local)
        if self.kill is not None and not state.killed and not state.buffers[self.kill]:
            clear = (Clear(self.kill), *self.after)
            # What it held is gone with it.
            dead = self.automaton.start(self.kill, clear)
            dead, _ = self._past_private(state.memory, (), dead)
            everything = frozenset(Refusal)  # what the dead worker held may stand in the table until it is cleared
            reached = tuple(everything if local.program else frozenset() for local in workers)
            yield (
                f"{self.kill}: killed",
                state._replace(locals=_replaced(state.locals, self.kill, dead.index), reached=reached, killed=True),
            )

    def _flush(self, state: State, column: int) -> State:
        (address, value), *rest = state.buffers[column]
        memory = _replaced(state.memory, address, value)
        return state._replace(memory=memory, buffers=_replaced(state.buffers, column, tuple(rest)))

    def _step(self, state: State, workers: list[Local], column: int, local: Local) -> State:
        access = local.access
        assert access is not None
        memory, buffers = state.memory, state.buffers
        answer = 0
        if access.kind == READ:
            answer = _seen(memory, buffers[column], access.address)
        elif access.kind == WRITE and self.buffered:
            buffers = _replaced(buffers, column, (*buffers[column], (access.address, access.value)))
        elif access.kind == WRITE:
            memory = _replaced(memory, access.address, access.value)
        following, ended = self.automaton.answer(local, answer)
        following, also_ended = self._past_private(memory, buffers[column], following)
        assert also_ended is None or ended is None
        ended = ended or also_ended
        if ended is not None and isinstance(ended.result, Refusal) and self.check_refusals:
            self._check_refusal(ended, local, state.reached[column], column)
        changed = following.held != local.held or following.begun != local.begun
        workers = _replaced_list(workers, column, following)
        if changed:
            check_limits(self.system, [worker.owned for worker in workers])
        reached = state.reached
        if changed or ended is not None:
            reached = tuple(
                self._reached(seen, workers, worker, begins=worker is following and ended is not None)
                for worker, seen in zip(workers, state.reached, strict=True)
            )
        return State(memory, buffers, tuple(worker.index for worker in workers), reached, state.killed)

    def _past_private(self, memory: tuple[int, ...], buffer: Buffer, local: Local) -> tuple[Local, Ended | None]:
        """Make the accesses that nobody else can tell the time of."""
        ended = None
        while local.access is not None and self.system.private(local.column, local.access):
            if local.access.kind == FENCE and self.buffered:
                break
            answer = _seen(memory, buffer, local.access.address) if local.access.kind == READ else 0
            local, ended_here = self.automaton.answer(local, answer)
            if ended_here is not None:
                assert ended is None
                ended = ended_here
        return local, ended

    # --- promises -----------------------------------------------------------------------------------------------------

    def _reached(
        self, seen: frozenset[Refusal], workers: list[Local], worker: Local, *, begins: bool
    ) -> frozenset[Refusal]:
        """The limits that the acquire under way has seen reached since it began."""
        if not worker.program or not isinstance(worker.program[0], Acquire):
            return frozenset()
        if any(other.program and isinstance(other.program[0], Clear) for other in workers):
            return frozenset(Refusal)
        now = frozenset(
            reached_limits(self.system, [other.held for other in workers], worker.column, worker.program[0])
        )
        return now if begins else seen | now

    def _check_refusal(self, ended: Ended, local: Local, reached: frozenset[Refusal], column: int) -> None:
        if ended.result not in reached:
            raise Violation(f"worker {column}, {ended.operation}: {ended.result}, but there was room all the time")

    def _check_end(self, state: State) -> None:
        workers = self._locals(state)
        expected = table_of(self.system, [worker.held for worker in workers])
        cells = self.plan.count_cells
        found = state.memory[:cells], state.memory[cells + self.plan.source_cells :]
        if any(number % 2 for number in found[0][: self.plan.workers]):
            raise Violation("a worker counts as deciding that has finished")
        if found[0][self.plan.workers :] != expected[0] or found[1] != expected[1]:
            raise Violation(f"the table says {found}, held is {expected}")


def explore(system: System, *programs: tuple[Operation, ...]) -> Explored:
    """All interleavings of the workers' programs. Raises Violation."""
    return Explorer(system, list(programs)).run()


def _seen(memory: tuple[int, ...], buffer: Buffer, address: int) -> int:
    for written, value in reversed(buffer):
        if written == address:
            return value
    return memory[address]


def _leading_to(ends: list[int], before: list[list[int]]) -> int:
    found = set(ends)
    todo = list(ends)
    while todo:
        for number in before[todo.pop()]:
            if number not in found:
                found.add(number)
                todo.append(number)
    return len(found)


def _schedule(parents: list[tuple[int, str]], number: int) -> str:
    steps: list[str] = []
    while number:
        number, name = parents[number]
        steps.append(name)
    return "\n".join(reversed(steps))


def _text(access: Access) -> str:
    return f"{access.kind} [{access.address}]" + (f" = {access.value}" if access.kind == WRITE else "")


def _replaced(row: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*row[:index], value, *row[index + 1 :])


def _replaced_list(row: list[T], index: int, value: T) -> list[T]:
    return [*row[:index], value, *row[index + 1 :]]
