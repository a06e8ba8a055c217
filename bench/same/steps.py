"""The steps of an end: what it can do, what it can wait for, and which of its observations are certain."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Word(enum.Enum):
    """An enumeration that prints as its name alone, since scripts are printed."""

    def __repr__(self) -> str:
        return self.name


class When(Word):
    """The conditions that a step may wait for."""

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
    """The steps without parameters."""

    LISTEN = "read from now on"
    FINISH = "shutdown(SHUT_WR)"
    CLOSE = "close()"
    RESET = "close() with RST"


class Say(NamedTuple):
    """Send `size` bytes, `chunk` at a time, with a pause (seconds) after each of the first few."""

    size: int
    chunk: int
    pause: float = 0.0


class SayOn(NamedTuple):
    """Send until a reset ends it."""

    chunk: int


class Fill(NamedTuple):
    """Send until nothing more is accepted for a moment."""

    chunk: int


class Until(NamedTuple):
    """Wait for a condition."""

    when: When
    size: int = 0


class Pause(NamedTuple):
    """Do nothing for some seconds."""

    seconds: float


Step = Do | Say | SayOn | Fill | Until | Pause


class Sure(enum.Enum):
    """How much of what an end sees is certain by TCP's rules."""

    ALL = "every byte, and how it ends"
    # The other end resets, or closes while this one sends, without waiting for anything. The RST overtakes the bytes
    # that are still with the sender or on their way, so it is chance how many of them arrive, also without a proxy.
    RESET = "only whether there was a reset; of the bytes and a FIN before it, any part"
    # The other end has closed, and this one sends to it: its kernel answers with RST. Without a proxy the RST arrives,
    # and discards bytes that were still under way. A proxy that has received everything has to deliver it, and need
    # not pass the RST on.
    WHOLE = "every byte and FIN, if the next kernel on the way had them before the reset"
    # Both ends reset: it is chance whether one is still there to get the other's reset.
    BYTES = "only that nothing else than what was sent arrives"


class Part(NamedTuple):
    """The part of one end."""

    steps: tuple[Step, ...]
    sure: Sure = Sure.ALL
    slow: bool = False  # reads little at a time; a client has a small window as well
    deaf: bool = False  # does not read before LISTEN, if ever
    answered: bool = False  # the other end speaks only after this one's FIN

    @property
    def whole(self) -> int | None:
        """The bytes that this end sends before its FIN; None if it sends no FIN."""
        size = 0
        for step in self.steps:
            if isinstance(step, Say):
                size += step.size
            elif step is Do.FINISH or (step is Do.CLOSE and not self.deaf):  # close() with unread data is a reset
                return size
        return None
