"""What an end can do, what it can wait for, and how much of what it sees is the same every time."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Word(enum.Enum):
    """Says its name only, for scripts are printed."""

    def __repr__(self) -> str:
        return self.name


class When(Word):
    """What a step may wait for."""

    MET = "both ends are connected"
    GOT = "it has received that many bytes"
    TAKEN = "the other end has received all that this one has sent"
    ENDED = "it has read the other end's FIN"
    SEEN = "the other end has read this one's FIN"
    UNREAD = "something has come that it does not read"
    TOLD = "the kernel has told it of a reset"
    ACKED = "the next kernel on the way has acknowledged all, FIN included, or it has taken too long"
    GONE = "the other end has closed"


class Do(Word):
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
    # The other end has closed, and is spoken to: its kernel answers with RST. Directly that is told, and takes with it
    # what did not fit on the way; a proxy that has received everything has to deliver it, and need not tell.
    WHOLE = "every byte and FIN, if the next kernel on the way had them before the reset"
    # Both ends reset: whether one is still there to be told by the other is chance.
    BYTES = "only that nothing else than what was sent arrives"


class Part(NamedTuple):
    """One end's."""

    steps: tuple[Step, ...]
    sure: Sure = Sure.ALL
    slow: bool = False  # reads little at a time, a client with a small window
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
