"""Which connections have been silent for too long, or have lived for long enough.

Looked at about once a second, so that a message costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic

from relay.engines.contract import Event, Timeouts
from relay.engines.link import L

LONG = 10.0  # seconds; a connection that was silent for so long is likely to stay so, and worth being kept cheaply


def interval(timeouts: Timeouts) -> float:
    """Seconds between two looks: an eighth of the shortest timeout, at most one second."""
    shortest = min((t for t in (timeouts.idle, timeouts.half_close) if t), default=8.0)
    return min(1.0, max(0.05, shortest / 8))


class Seen(Generic[L]):
    """What a look found."""

    __slots__ = ("aged", "expired", "long", "moved", "quiet")

    def __init__(self) -> None:
        self.moved: list[L] = []  # since the last look
        self.quiet: list[L] = []  # had moved then, and have not since
        self.long: list[L] = []  # are silent for LONG now, and were not yet then
        self.aged: list[L] = []  # have lived as long as they may, and are found again by every look
        self.expired: list[tuple[L, Event]] = []  # whose time is up, with the event to tell them


def look(links: Iterable[L], timeouts: Timeouts, now: float, before: float) -> Seen[L]:
    """Look at all of them; the last look was at `before`.

    What the relay can see of a slow reader is that it takes something out of what is held for it; the bytes in the
    kernel's own buffers drain unseen, so for such a connection silence is known only in steps of a buffer.
    """
    idle = timeouts.idle or float("inf")
    half_close = timeouts.half_close or float("inf")
    seen: Seen[L] = Seen()
    for link in links:
        upstream = link.upstream
        if not link.active or upstream is None:
            continue
        if link.handler.expires_at <= now:
            seen.aged.append(link)
        client = link.client
        total = client.received + upstream.received
        if total != link.seen:
            link.seen = total
            link.active = now
            seen.moved.append(link)
            continue
        silent = now - link.active
        if link.active == before:
            seen.quiet.append(link)
        if silent >= LONG > before - link.active:
            seen.long.append(link)
        if silent >= half_close and (client.ended or upstream.ended):
            seen.expired.append((link, Event.UPSTREAM_HALF_CLOSE if client.ended else Event.CLIENT_HALF_CLOSE))
        elif silent >= idle:
            seen.expired.append((link, Event.IDLE))
    return seen
