"""Scripts for `bench.same`: what both ends of one connection do, and which of what they see is the same every time.

A script follows from its seed alone. Each end has a part, a row of steps. Steps may wait for what happened at the other
end (`When`): both ends are played by one program, so a reset can be put exactly where all bytes have arrived, or where
one end sees nothing but the other's end. What is left to chance on purpose is said by the part's `Sure`.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.script import SIZES

CHUNKS = (512, 4096, 65536, 300_000)
CLIENT, UPSTREAM = "client", "upstream"


class When(enum.Enum):
    """What a step may wait for."""

    MET = "both ends are connected"
    GOT = "it has received that many bytes"
    TAKEN = "the other end has received all that this one has sent"
    ENDED = "it has read the other end's FIN"
    SEEN = "the other end has read this one's FIN"
    UNREAD = "something has come that it does not read"
    TOLD = "the kernel has told it of a reset"


class Do(enum.Enum):
    """Steps that need no saying more."""

    LISTEN = "read from now on"
    FINISH = "shutdown(SHUT_WR)"
    CLOSE = "close()"
    RESET = "close() with RST"


class Say(NamedTuple):
    """Send so many bytes, `chunk` at a time, with a pause of that many seconds behind each of the first few."""

    size: int
    chunk: int
    pause: float = 0.0


class SayOn(NamedTuple):
    """Send until a reset ends it."""

    chunk: int


class Fill(NamedTuple):
    """Send until nothing more is taken for a moment."""

    chunk: int


class Until(NamedTuple):
    """Wait."""

    when: When
    size: int = 0


class Pause(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


Step = Do | Say | SayOn | Fill | Until | Pause


class Sure(enum.Enum):
    """How much of what an end sees TCP makes the same every time."""

    ALL = "every byte, and how it ends"
    # The other end resets, or closes while this one sends, without waiting for anything. The RST overtakes the bytes
    # that are still with the sender or on their way, so how many of them arrive is chance, also without a proxy.
    RESET = "only whether there was a reset; of the bytes and a FIN before it, any part"
    # Both ends reset: whether one is still there to be told by the other is chance.
    BYTES = "only that nothing else than what was sent arrives"


class Part(NamedTuple):
    """One end's."""

    steps: tuple[Step, ...]
    sure: Sure = Sure.ALL
    slow: bool = False  # reads little at a time, with a small window
    deaf: bool = False  # does not read before LISTEN, if ever
    answered: bool = False  # the other end speaks only after this one's FIN

    @property
    def whole(self) -> int | None:
        """Bytes that it sends before its FIN; None if it never sends one."""
        size = 0
        for step in self.steps:
            if isinstance(step, Say):
                size += step.size
            elif step is Do.FINISH or (step is Do.CLOSE and not self.deaf):  # close() with unread data is a reset
                return size
        return None


class Dice:
    """The chance of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def size(self) -> int:
        """Mostly what a device says, now and then megabytes."""
        return self.random.randrange(1, self.random.choices(SIZES, (80, 17, 3))[0])

    def say(self, size: int | None = None) -> Say:
        size = self.size() if size is None else size
        chunk = self.random.choice((17, *CHUNKS) if size < SIZES[0] else CHUNKS[1:])
        return Say(size, chunk, self.random.choice((0.0, 0.0, 0.0, 0.001, 0.01)))

    def on(self) -> SayOn:
        return SayOn(self.random.choice((100, *CHUNKS[:3])))

    def on_or_listen(self) -> Step:
        """What an end does that is to be reset."""
        return self.random.choice((self.on(), Until(When.TOLD)))

    def pause(self) -> Pause:
        return Pause(self.random.choice((0.0, 0.0, 0.002, 0.05)))


Parts = tuple[Part, Part]  # of the end that acts first, and of the other one
TOLD, ENDED, MET, TAKEN = Until(When.TOLD), Until(When.ENDED), Until(When.MET), Until(When.TAKEN)


def end_first(dice: Dice) -> Parts:
    """A request with its end, then the answer: nothing of it before the other's half-close is seen."""
    first = Part((dice.say(), Do.FINISH), answered=True)
    return first, Part((ENDED, dice.pause(), dice.say(), Do.FINISH))


def both_at_once(dice: Dice) -> Parts:
    return Part((dice.say(), Do.FINISH)), Part((dice.pause(), dice.say(), Do.FINISH))


def byte_by_byte(dice: Dice) -> Parts:
    says = [Say(dice.random.randrange(1, 300), 1, dice.random.choice((0.0, 0.001))) for _ in range(2)]
    return Part((says[0], Do.FINISH)), Part((says[1], Do.FINISH))


def slow_reader(dice: Dice) -> Parts:
    much = dice.say(dice.random.randrange(SIZES[0], SIZES[2] if dice.random.random() < 0.1 else SIZES[1] * 3))
    return Part((dice.say(), Do.FINISH), slow=True), Part((much, Do.FINISH))


def turns_only(dice: Dice) -> Parts:
    """All is said in turns, which `Script.of` puts before; what is left is the end."""
    return Part((Do.FINISH,)), Part((ENDED, Do.FINISH))


def says_nothing(dice: Dice) -> Parts:
    return Part((dice.pause(), Do.FINISH), answered=True), Part((ENDED, dice.pause(), Do.FINISH))


def close_heard(dice: Dice) -> Parts:
    """Everything has arrived both ways, and one end closes at once instead of half-closing."""
    ours, theirs = dice.say(), dice.say()
    first = Part((ours, Until(When.GOT, theirs.size), TAKEN, Do.CLOSE))
    # Whoever goes on sending to an end that is closed must be told; whoever ends as well must not.
    return first, Part((theirs, ENDED, dice.random.choice((Do.FINISH, dice.on()))))


def close_unread(dice: Dice) -> Parts:
    """Closing with unread data is a reset, RFC 1122, 4.2.2.13."""
    first = Part((dice.say(), TAKEN, Until(When.UNREAD), Do.CLOSE), deaf=True)
    size = dice.random.randrange(1, SIZES[0])
    heard: tuple[tuple[Step, ...], ...] = (
        (Say(size, size), TOLD),
        (Say(size, size), Do.FINISH, TOLD),
        (dice.on(),),
    )
    return first, Part(dice.random.choice(heard))


def close_sending(dice: Dice) -> Parts:
    return Part((dice.say(), Do.CLOSE), Sure.RESET), Part((dice.on(),), Sure.RESET)


def reset_silent(dice: Dice) -> Parts:
    return Part((MET, dice.pause(), Do.RESET)), Part((TOLD,))


def reset_at_once(dice: Dice) -> Parts:
    """Of a client only: it connects and resets, whether or not there is an upstream yet."""
    return Part((Do.RESET,)), Part((TOLD,))


def reset_heard(dice: Dice) -> Parts:
    """A reset while nothing is on its way: every byte before it must have arrived."""
    ours, theirs = dice.say(), dice.say()
    first = Part((ours, Until(When.GOT, theirs.size), TAKEN, dice.pause(), Do.RESET))
    return first, Part((theirs, TOLD))


def reset_sending(dice: Dice) -> Parts:
    listening = dice.on_or_listen()
    return Part((dice.say(), Do.RESET), Sure.ALL if listening == TOLD else Sure.RESET), Part((listening,), Sure.RESET)


def reset_after_end(dice: Dice) -> Parts:
    """One direction ended in good order, and then there is a reset."""
    listening = dice.on_or_listen()
    first = Part((dice.say(), Do.FINISH, Until(When.SEEN), dice.pause(), Do.RESET))
    return first._replace(sure=Sure.ALL if listening == TOLD else Sure.RESET), Part((ENDED, listening))


def reset_with_end(dice: Dice) -> Parts:
    """The reset comes right behind the FIN: the other end may see both, but not the FIN alone."""
    listening = dice.on_or_listen()
    first = Part((dice.say(), Do.FINISH, Do.RESET), Sure.ALL if listening == TOLD else Sure.RESET)
    return first, Part((listening,), Sure.RESET)


def reset_after_theirs(dice: Dice) -> Parts:
    """The end that is reset has half-closed before."""
    waits = dice.random.random() < 0.5
    first = Part((ENDED, dice.say(), *((TAKEN,) if waits else ()), Do.RESET))
    return first, Part((dice.say(), Do.FINISH, TOLD), Sure.ALL if waits else Sure.RESET, answered=waits)


def reset_stuck_sender(dice: Dice) -> Parts:
    """The other end does not read, so that everything on the way is full."""
    return Part((MET, Fill(65536), Do.RESET)), Part((TOLD, Do.LISTEN), Sure.RESET, deaf=True)


def reset_stuck_reader(dice: Dice) -> Parts:
    return Part((Until(When.UNREAD), Pause(0.2), Do.RESET), deaf=True), Part((SayOn(65536),))


def reset_both(dice: Dice) -> Parts:
    return Part((dice.say(), MET, Do.RESET), Sure.BYTES), Part((dice.say(), Do.RESET), Sure.BYTES)


Kind = Callable[[Dice], Parts]
KINDS: dict[Kind, int] = {
    end_first: 3, both_at_once: 3, byte_by_byte: 1, slow_reader: 1, turns_only: 3, says_nothing: 2,
    close_heard: 3, close_unread: 2, close_sending: 2,
    reset_silent: 1, reset_at_once: 1, reset_heard: 3, reset_sending: 3, reset_after_end: 3, reset_with_end: 2,
    reset_after_theirs: 3, reset_stuck_sender: 1, reset_stuck_reader: 1, reset_both: 1,
}  # fmt: skip
RESETS_OF_ITS_OWN = {close_heard, close_unread, close_sending}  # that the kernel sends, without RESET in the script


@dataclass(frozen=True, slots=True)
class Script:
    """One connection."""

    seed: int
    kind: str
    first: str  # who acts first, CLIENT or UPSTREAM: finishes, closes or resets
    client: Part
    upstream: Part
    nodelay: bool

    @classmethod
    def of(cls, seed: int) -> Script:
        """The script of that seed."""
        dice = Dice(seed)
        kind = dice.random.choices(list(KINDS), list(KINDS.values()))[0]
        first = CLIENT if kind is reset_at_once else dice.random.choice((CLIENT, UPSTREAM))
        ours, theirs = kind(dice)
        # Turns of request and answer first: a connection that has been used is in another state than a fresh one.
        if kind is turns_only or (kind not in (says_nothing, reset_silent, reset_at_once) and dice.random.random() < 0.3):
            if not ours.deaf and not theirs.deaf:
                ours, theirs = with_turns(dice, ours, theirs)
        client, upstream = (ours, theirs) if first == CLIENT else (theirs, ours)
        return cls(seed, kind.__name__, first, client, upstream, dice.random.random() < 0.7)

    def part(self, side: str) -> Part:
        return self.client if side == CLIENT else self.upstream

    @property
    def hasty(self) -> bool:
        """The client may be gone before a proxy has dialled."""
        return self.kind == reset_at_once.__name__

    @property
    def broken_by(self) -> str:
        """The side that a reset comes from, "" if there is none."""
        steps = (*self.client.steps, *self.upstream.steps)
        return self.first if TOLD in steps or any(isinstance(step, SayOn) for step in steps) else ""


def with_turns(dice: Dice, ours: Part, theirs: Part) -> Parts:
    """Both parts with some turns before them."""
    said, heard = 0, 0
    before: tuple[list[Step], list[Step]] = ([], [])
    for _ in range(dice.random.randrange(1, 20)):
        question, answer = (Say(size, size) for size in dice.random.choices((1, 60, 900, 3000, 40_000), k=2))
        said, heard = said + question.size, heard + answer.size
        before[0].extend((question, Until(When.GOT, heard)))
        before[1].extend((Until(When.GOT, said), answer))
    return later(ours, before[0], heard), later(theirs, before[1], said)


def later(part: Part, before: list[Step], received: int) -> Part:
    """A part that begins after those steps, in which so many bytes were received."""
    steps = [
        Until(step.when, step.size + received) if isinstance(step, Until) and step.size else step for step in part.steps
    ]
    return part._replace(steps=(*before, *steps))
