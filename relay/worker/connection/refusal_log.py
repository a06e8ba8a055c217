"""Refusals in the access log: one full line for each listener, reason and client, then periodic counts.

A flood of refusals must not become a flood of lines. The first refusal of a kind gets a full line; further ones are
counted, and a summary line with the count is written every ten seconds. Memory is bounded: after a thousand kinds,
refusals are counted without their client.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from relay.log_writer import local_timestamp, timestamp
from relay.outcome import Outcome
from relay.worker.connection.access_log import Record

PERIOD = 10.0  # seconds between summaries
MAX_KINDS = 1000

Kind = tuple[str, Outcome, str]  # listener, reason, client's address ("" beyond MAX_KINDS)


class RefusalCount:
    """Refusals of one kind since the last summary."""

    __slots__ = ("bytes_down", "bytes_up", "count")

    def __init__(self) -> None:
        self.count = self.bytes_up = self.bytes_down = 0


class RefusalLog:
    """A filter before the access log: passes everything on except repeated refusals, which it counts.

    `line` writes the access line of one connection, `write` any line; `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        line: Callable[[Record, Outcome, float], None],
        write: Callable[[str], None],
        log_format: str,
        clock: Callable[[], float],
    ) -> None:
        self._line = line
        self._write = write
        self._json = log_format == "json"
        self._clock = clock
        self._kinds: dict[Kind, RefusalCount] = {}
        self._summarized_at = clock()

    def __call__(self, connection: Record, outcome: Outcome, seconds: float) -> None:
        if not outcome.early:
            self._line(connection, outcome, seconds)
            return
        kind: Kind = (connection.frontend.name, outcome, connection.client[0])
        counted = self._kinds.get(kind)
        if counted is None:
            if len(self._kinds) < MAX_KINDS:
                self._kinds[kind] = RefusalCount()
                self._line(connection, outcome, seconds)
                return
            kind = (kind[0], outcome, "")
            counted = self._kinds.get(kind)
            if counted is None:  # these are few: one for each listener and reason
                counted = self._kinds[kind] = RefusalCount()
        counted.count += 1
        counted.bytes_up += connection.bytes_up
        counted.bytes_down += connection.bytes_down

    def tick(self, now: float) -> None:
        """Write the summaries if they are due; called periodically."""
        if now - self._summarized_at >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Write the summaries. A kind that was counted in this period gets no full line in the next one."""
        now = self._clock()
        seconds, self._summarized_at = now - self._summarized_at, now
        before, self._kinds = self._kinds, {}
        for kind, counted in before.items():
            if counted.count:
                self._write(self._summary(kind, counted, seconds))
                if kind[2]:
                    self._kinds[kind] = RefusalCount()

    def _summary(self, kind: Kind, counted: RefusalCount, seconds: float) -> str:
        listener, outcome, client = kind
        if not self._json:
            return (
                f"{local_timestamp(time.time())} {listener}: {client or 'other clients'} "
                f"{outcome.label} ({outcome.state}) {counted.count} more in {seconds:.0f} s\n"
            )
        line = {
            "time": timestamp(time.time()),
            "event": "refusals",
            "listener": listener,
            "client": client,
            "outcome": outcome.label,
            "state": outcome.state,
            "count": counted.count,
            "bytes_up": counted.bytes_up,
            "bytes_down": counted.bytes_down,
            "seconds": round(seconds, 3),
        }
        return json.dumps(line) + "\n"
