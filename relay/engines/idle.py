"""The periodic check of all connections for idle and half-close timeouts, maximum age, and bytes to report.

It runs about once a second, so that passing on a message costs no timer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic

from relay.engines.contract import Event, SharedTimeouts, Timeouts
from relay.engines.link import L

LONG_IDLE = 10.0  # seconds of silence after which a connection is likely to stay silent, and is worth keeping cheaply


def check_interval(timeouts: Timeouts, others: Iterable[Timeouts] = ()) -> float:
    """Seconds between two checks: an eighth of the shortest timeout, at most one second."""
    shortest = min((t for of in (timeouts, *others) for t in (of.idle, of.half_close) if t), default=8.0)
    return min(1.0, max(0.05, shortest / 8))


class IdleCheck(Generic[L]):
    """The result of one check: connections by what has to be done for them."""

    __slots__ = ("expired", "long_idle", "moved", "quiet", "timed_out")

    def __init__(self) -> None:
        self.moved: list[L] = []  # bytes moved since the previous check
        self.quiet: list[L] = []  # bytes had moved at the previous check, and none have since
        self.long_idle: list[L] = []  # silent for LONG_IDLE now, and were not at the previous check
        self.expired: list[L] = []  # past `Handler.expires_at`; every check finds them again
        self.timed_out: list[tuple[L, Event]] = []  # over a timeout, with the event that reports it


def check(links: Iterable[L], timeouts: SharedTimeouts, now: float, previous: float) -> IdleCheck[L]:
    """Check `links` at `now`; the previous check was at `previous` (monotonic seconds).

    `timeouts` are for connections whose handler shares none.

    A slow reader counts as active when it takes something out of what the engine holds for it. Bytes that drain from
    the kernel's own buffers are not seen, so the silence of such a connection is known only in steps of a buffer.
    """
    result: IdleCheck[L] = IdleCheck()
    for link in links:
        upstream = link.upstream
        if not link.active or upstream is None:
            continue
        handler = link.handler
        of = handler.timeouts
        if of is None:
            of = timeouts
        if handler.expires_at <= now and of.ages:
            result.expired.append(link)
        client = link.client
        total = client.received + upstream.received
        if total != link.seen:
            link.seen = total
            link.active = now
            result.moved.append(link)
            continue
        silent = now - link.active
        if link.active == previous:
            result.quiet.append(link)
        if silent >= LONG_IDLE > previous - link.active:
            result.long_idle.append(link)
        if silent >= of.half_close and (client.ended or upstream.ended):
            result.timed_out.append((link, Event.UPSTREAM_HALF_CLOSE if client.ended else Event.CLIENT_HALF_CLOSE))
        elif silent >= of.idle:
            result.timed_out.append((link, Event.IDLE))
    return result
