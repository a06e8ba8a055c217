"""Lingering close, as web servers call it: a connection that has lost one side after that side sent FIN.

Everything that the lost side sent was received, so its reset or timeout truncates nothing. The other side, the
survivor, gets the rest of it, then FIN. What the survivor sends is dropped, as the kernel of a closed socket does,
since nobody is there to read it. A survivor that sends FIN as well within LINGER has ended in good order: its last
bytes were a goodbye (TLS: close_notify). A survivor that does not is closed after LINGER, and the reset passed on.
LINGER begins once the survivor has acknowledged everything: a reset would overtake data under way.
"""

from __future__ import annotations

from relay.engines.contract import NEVER, Event
from relay.engines.link import Link
from relay.engines.tcp_state import acknowledged

LINGER = 1.0  # seconds that a survivor has to send FIN once it has acknowledged everything


class Lingering:
    """The lingering close of one connection: the lost side, and the event to report if the survivor sends no FIN."""

    __slots__ = ("_deadline", "event", "is_client", "value")

    def __init__(self, is_client: bool, event: Event, value: int | None) -> None:
        self.is_client = is_client  # True: the client is the lost side
        self.event = event
        self.value = value
        self._deadline = NEVER  # monotonic seconds; NEVER until the survivor has acknowledged everything

    @property
    def half_close(self) -> Event:
        """The event for a survivor that does not end within `Timeouts.half_close`."""
        return Event.UPSTREAM_HALF_CLOSE if self.is_client else Event.CLIENT_HALF_CLOSE

    def is_over(self, link: Link, now: float) -> bool:
        """True once LINGER has passed since the survivor acknowledged everything. Call it at each tick."""
        survivor = link.upstream if self.is_client else link.client
        if self._deadline == NEVER and survivor is not None and survivor.finished and acknowledged(survivor.fd):
            self._deadline = now + LINGER
        return now >= self._deadline
