"""Connections that have lost one of their sides after it had sent FIN: a lingering close, as web servers call it.

All that the lost side had to say was received, so its end, whichever it is, truncates nothing. What the other side, the
survivor, is still to get is delivered, then FIN; what it sends itself nobody is there for, so it is dropped, as the
kernel of an end that has closed does. A survivor that ends as well within LINGER has ended in good order: the last it
said was a goodbye (TLS: close_notify). One that does not is told of the reset then. Not before it has acknowledged
everything: a reset would overtake what is under way.
"""

from __future__ import annotations

from relay.engines.contract import NEVER, Event
from relay.engines.link import Link
from relay.engines.tcp_state import acknowledged

LINGER = 1.0  # seconds that a survivor has for its own FIN once it has everything


class Lingering:
    """One such connection: which side was lost, and what the handler is told if the other one does not end."""

    __slots__ = ("_deadline", "event", "is_client", "value")

    def __init__(self, is_client: bool, event: Event, value: int | None) -> None:
        self.is_client = is_client  # whether the lost side is the client
        self.event = event
        self.value = value
        self._deadline = NEVER  # monotonic seconds; NEVER: the survivor does not have everything yet

    @property
    def half_close(self) -> Event:
        """The event of a survivor that does not end within `Timeouts.half_close`."""
        return Event.UPSTREAM_HALF_CLOSE if self.is_client else Event.CLIENT_HALF_CLOSE

    def is_over(self, link: Link, now: float) -> bool:
        """Whether the survivor has everything, and has had its time since. To be asked at each tick."""
        survivor = link.upstream if self.is_client else link.client
        if self._deadline == NEVER and survivor is not None and survivor.finished and acknowledged(survivor.fd):
            self._deadline = now + LINGER
        return now >= self._deadline
