"""Scripts: what both ends of one connection do.

A script follows from its seed alone. Each end has a part, a sequence of steps. A step may wait for something at the
other end (`steps.When`): one program plays both ends, so a reset can be put exactly where all bytes have arrived, or
where one end has seen the other's FIN and nothing else. `steps.Sure` of a part says what is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.same.kinds import KINDS, TOLD, UNUSED, Dice, Parts, reset_at_once, reset_both, turns_only
from bench.same.steps import Part, Say, SayOn, Step, Until, When

CLIENT, UPSTREAM = "client", "upstream"


@dataclass(frozen=True, slots=True)
class Script:
    """The script of one connection."""

    seed: int
    kind: str
    first: str  # who acts first, CLIENT or UPSTREAM: finishes, closes or resets
    client: Part
    upstream: Part
    nodelay: bool

    @classmethod
    def of(cls, seed: int) -> Script:
        """The script of a seed."""
        dice = Dice(seed)
        kind = dice.random.choices(list(KINDS), list(KINDS.values()))[0]
        first = CLIENT if kind is reset_at_once else dice.random.choice((CLIENT, UPSTREAM))
        ours, theirs = kind(dice)
        # Turns of request and answer in front: a used connection is in another state than a fresh one.
        turns = kind is turns_only or (kind not in UNUSED and dice.random.random() < 0.3)
        if turns and not ours.deaf and not theirs.deaf:
            ours, theirs = with_turns(dice, ours, theirs)
        client, upstream = (ours, theirs) if first == CLIENT else (theirs, ours)
        return cls(seed, kind.__name__, first, client, upstream, dice.random.random() < 0.7)

    def part(self, side: str) -> Part:
        return self.client if side == CLIENT else self.upstream

    def other_side(self, side: str) -> str:
        return UPSTREAM if side == CLIENT else CLIENT

    def other(self, side: str) -> Part:
        return self.part(self.other_side(side))

    @property
    def hasty(self) -> bool:
        """Whether the client may be gone before a proxy has dialled."""
        return self.kind == reset_at_once.__name__

    @property
    def reset_by(self) -> str:
        """The side that resets, or "both", or "" for none; the kernel's reset for a close counts."""
        if self.kind == reset_both.__name__:
            return "both"
        steps = (*self.client.steps, *self.upstream.steps)
        return self.first if TOLD in steps or any(isinstance(step, SayOn) for step in steps) else ""


def with_turns(dice: Dice, ours: Part, theirs: Part) -> Parts:
    """Both parts with some turns of request and answer in front."""
    said, heard = 0, 0
    before: tuple[list[Step], list[Step]] = ([], [])
    for _ in range(dice.random.randrange(1, 20)):
        question, answer = (Say(size, size) for size in dice.random.choices((1, 60, 900, 3000, 40_000), k=2))
        said, heard = said + question.size, heard + answer.size
        before[0].extend((question, Until(When.GOT, heard)))
        before[1].extend((Until(When.GOT, said), *((dice.pause(),) if dice.random.random() < 0.1 else ()), answer))
    return later(ours, before[0], heard), later(theirs, before[1], said)


def later(part: Part, before: list[Step], received: int) -> Part:
    """A part with the steps `before` in front, during which `received` bytes are received."""
    steps = [
        Until(step.when, step.size + received) if isinstance(step, Until) and step.size else step for step in part.steps
    ]
    return part._replace(steps=(*before, *steps))
