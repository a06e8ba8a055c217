"""The kinds of scripts: each draws the part of the end that acts first, and the part of the other end."""

from __future__ import annotations

import random
from collections.abc import Callable

from bench.same.steps import Do, Fill, Part, Pause, Say, SayOn, Step, Sure, Until, When
from bench.script import SIZES

CHUNKS = (512, 4096, 65536, 300_000)


class Dice:
    """The random choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def say(self, size: int | None = None) -> Say:
        """A Say, mostly of a device's size, now and then of megabytes."""
        if size is None:
            size = self.random.randrange(1, self.random.choices(SIZES, (80, 17, 3))[0])
        chunk = self.random.choice((17, *CHUNKS) if size < SIZES[0] else CHUNKS[1:])
        return Say(size, chunk, self.random.choice((0.0, 0.0, 0.0, 0.001, 0.01)))

    def say_more(self) -> Say:
        """A Say that is large more often, so that bytes are under way when it is cut short."""
        return self.say(self.random.randrange(1, self.random.choices(SIZES, (30, 65, 5))[0]))

    def on(self) -> SayOn:
        return SayOn(self.random.choice((100, *CHUNKS[:3])))

    def on_or_listen(self) -> Step:
        """The last step of an end that will be reset."""
        return self.random.choice((self.on(), Until(When.TOLD)))

    def pause(self) -> Pause:
        """A pause, mostly of zero seconds. After a second or two, the timers of a proxy check a connection."""
        return Pause(self.random.choices((0.0, 0.002, 0.05, 2.2), (50, 25, 20, 5))[0])

    def short_pause(self) -> Pause:
        """A pause shorter than the time in which relay lets the surviving side end (`lingering.LINGER`)."""
        return Pause(self.random.choice((0.0, 0.002, 0.05)))


Parts = tuple[Part, Part]  # of the end that acts first, and of the other one
TOLD, ENDED, MET, TAKEN = Until(When.TOLD), Until(When.ENDED), Until(When.MET), Until(When.TAKEN)


def end_first(dice: Dice) -> Parts:
    """A request and FIN, then the answer, of which nothing is sent before the FIN is seen."""
    first = Part((dice.say(), Do.FINISH), answered=True)
    return first, Part((ENDED, dice.pause(), dice.say(), Do.FINISH))


def both_at_once(dice: Dice) -> Parts:
    """Both ends send and end, and neither waits for the other."""
    return Part((dice.say(), Do.FINISH)), Part((dice.pause(), dice.say(), Do.FINISH))


def byte_by_byte(dice: Dice) -> Parts:
    """Every send has one byte."""
    says = [Say(dice.random.randrange(1, 300), 1, dice.random.choice((0.0, 0.001))) for _ in range(2)]
    return Part((says[0], Do.FINISH)), Part((says[1], Do.FINISH))


def slow_reader(dice: Dice) -> Parts:
    """One end reads slowly, so that bytes pile up on the way."""
    return Part((dice.say(), Do.FINISH), slow=True), Part((dice.say(dice.random.randrange(SIZES[1] * 3)), Do.FINISH))


def late_reader(dice: Dice) -> Parts:
    """One end sends more than fits on the way, then FIN, before the other end reads anything."""
    much = Say(dice.random.randrange(SIZES[1], SIZES[2] * 2), 65536)
    late = (MET, Pause(dice.random.choice((0.1, 0.5))), Do.LISTEN, ENDED, dice.say(), Do.FINISH)
    return Part((much, Do.FINISH), answered=True), Part(late, deaf=True)


def turns_only(dice: Dice) -> Parts:
    """All bytes are sent in turns, which `Script.of` puts in front; these parts only end the connection."""
    return Part((Do.FINISH,)), Part((ENDED, Do.FINISH))


def says_nothing(dice: Dice) -> Parts:
    """No byte in either direction."""
    return Part((dice.pause(), Do.FINISH), answered=True), Part((ENDED, dice.pause(), Do.FINISH))


def close_heard(dice: Dice) -> Parts:
    """Everything has arrived both ways, and one end closes in place of half-closing."""
    ours, theirs = dice.say(), dice.say()
    first = Part((ours, Until(When.GOT, theirs.size), TAKEN, Do.CLOSE))
    # An end that goes on sending to the closed end must get the reset; an end that ends as well must not.
    return first, Part((theirs, ENDED, dice.random.choice((Do.FINISH, dice.on()))))


def goodbye(dice: Dice) -> Parts:
    """One end has closed, and the other one sends something and closes: TLS's close_notify."""
    ours, theirs = dice.say(), dice.say()
    more = (dice.short_pause(), Say(24, 24))
    first = Part((ours, Until(When.GOT, theirs.size), TAKEN, Do.CLOSE))
    last = (Say(24, 24), *(more if dice.random.random() < 0.5 else ()), Do.CLOSE)
    return first, Part((theirs, ENDED, *last), Sure.WHOLE)


def answer_late_read(dice: Dice) -> Parts:
    """One end has closed, and the other one sends to it before it reads the last bytes."""
    first = Part((MET, Say(dice.random.randrange(1, 250_000), 65536), Do.FINISH, Until(When.ACKED), Do.CLOSE))
    # One message only: with a second one HAProxy resets as well, and the rest of the answer is lost.
    size = dice.random.randrange(1, 1000)
    late = (Until(When.GONE), Say(size, size), dice.short_pause(), Do.LISTEN, ENDED, Do.FINISH)
    return first, Part(late, Sure.WHOLE, deaf=True)


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
    """One end closes while the other one sends."""
    return Part((dice.say_more(), Do.CLOSE), Sure.RESET), Part((dice.on(),), Sure.RESET)


def reset_silent(dice: Dice) -> Parts:
    """A reset is all that happens."""
    return Part((MET, dice.pause(), Do.RESET)), Part((TOLD,))


def reset_at_once(dice: Dice) -> Parts:
    """The client connects and resets, whether or not there is an upstream yet. Never the upstream."""
    return Part((Do.RESET,)), Part((TOLD,))


def reset_heard(dice: Dice) -> Parts:
    """A reset while no byte is under way: all bytes before it must have arrived."""
    ours, theirs = dice.say(), dice.say()
    first = Part((ours, Until(When.GOT, theirs.size), TAKEN, dice.pause(), Do.RESET))
    return first, Part((theirs, TOLD))


def reset_sending(dice: Dice) -> Parts:
    """One end sends, then resets with bytes still under way."""
    listening = dice.on_or_listen()
    first = Part((dice.say_more(), Do.RESET), Sure.ALL if listening == TOLD else Sure.RESET)
    return first, Part((listening,), Sure.RESET)


def reset_after_end(dice: Dice) -> Parts:
    """One direction has ended with FIN, and then the same end resets."""
    listening = dice.on_or_listen()
    first = Part((dice.say(), Do.FINISH, Until(When.SEEN), dice.pause(), Do.RESET))
    return first._replace(sure=Sure.ALL if listening == TOLD else Sure.RESET), Part((ENDED, listening))


def reset_with_end(dice: Dice) -> Parts:
    """A reset right behind the FIN: the other end may see both, but not the FIN alone."""
    listening = dice.on_or_listen()
    first = Part((dice.say_more(), Do.FINISH, Do.RESET), Sure.ALL if listening == TOLD else Sure.RESET)
    return first, Part((listening,), Sure.RESET)


def reset_after_theirs(dice: Dice) -> Parts:
    """The end that gets the reset has half-closed before."""
    waits = dice.random.random() < 0.5
    first = Part((ENDED, dice.say_more(), *((TAKEN,) if waits else ()), Do.RESET))
    return first, Part((dice.say(), Do.FINISH, TOLD), Sure.ALL if waits else Sure.RESET, answered=waits)


def reset_stuck_sender(dice: Dice) -> Parts:
    """A reset while every buffer on the way is full, because the other end does not read."""
    return Part((MET, Fill(65536), Do.RESET)), Part((TOLD, Do.LISTEN), Sure.RESET, deaf=True)


def reset_stuck_reader(dice: Dice) -> Parts:
    """The end that does not read resets, and the bytes under way to it are lost."""
    return Part((Until(When.UNREAD), Pause(0.2), Do.RESET), deaf=True), Part((SayOn(65536),))


def reset_both(dice: Dice) -> Parts:
    """Both ends send and reset, and neither waits for the other."""
    return Part((dice.say_more(), MET, Do.RESET), Sure.BYTES), Part((dice.say_more(), Do.RESET), Sure.BYTES)


Kind = Callable[[Dice], Parts]
KINDS: dict[Kind, int] = {
    end_first: 3, both_at_once: 3, byte_by_byte: 1, slow_reader: 1, late_reader: 1,
    turns_only: 3, says_nothing: 2,
    close_heard: 3, close_unread: 2, close_sending: 2, goodbye: 3, answer_late_read: 2,
    reset_silent: 1, reset_at_once: 1, reset_heard: 3, reset_sending: 6, reset_after_end: 3, reset_with_end: 2,
    reset_after_theirs: 3, reset_stuck_sender: 1, reset_stuck_reader: 1, reset_both: 1,
}  # fmt: skip
UNUSED = {says_nothing, reset_silent, reset_at_once}  # kinds about connections on which no byte was sent before
