"""Which connections have been silent for too long. Looked at about once a second, so that a message costs nothing."""

from __future__ import annotations

from collections.abc import Iterable

from relay.engines.contract import Event, Timeouts
from relay.engines.stream.link import Link


def interval(timeouts: Timeouts) -> float:
    """Seconds between two looks: an eighth of the shortest timeout, at most one second."""
    shortest = min((t for t in (timeouts.idle, timeouts.half_close) if t), default=8.0)
    return min(1.0, max(0.05, shortest / 8))


def look(links: Iterable[Link], timeouts: Timeouts, now: float) -> tuple[list[Link], list[tuple[Link, Event]]]:
    """The connections that have moved since the last look, and those whose time is up, with the event to tell them.

    What the relay can see of a slow reader is that it takes something out of what is held for it; the bytes in the
    kernel's own buffers drain unseen, so for such a connection silence is known only in steps of a buffer.
    """
    idle = timeouts.idle or float("inf")
    half_close = timeouts.half_close or float("inf")
    moved: list[Link] = []
    expired: list[tuple[Link, Event]] = []
    for link in links:
        upstream = link.upstream
        if not link.active or upstream is None:
            continue
        client = link.client
        total = client.received + upstream.received
        if total != link.seen:
            link.seen = total
            link.active = now
            moved.append(link)
            continue
        silent = now - link.active
        if silent >= half_close and (client.ended or upstream.ended):
            expired.append((link, Event.UPSTREAM_HALF_CLOSE if client.ended else Event.CLIENT_HALF_CLOSE))
        elif silent >= idle:
            expired.append((link, Event.IDLE))
    return moved, expired
