"""Refusals in the access log: a first line for each listener, reason and client, then counts.

A flood must not become a flood of lines. The first refusal of a kind has its whole line; those that follow are counted
and told of together, every ten seconds while there are any. What is kept is bounded: from the thousandth kind on they
are counted without their client.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from relay.log_writer import local_timestamp, timestamp
from relay.outcome import Outcome
from relay.worker.connection.access_log import Record

PERIOD = 10.0  # seconds
KINDS = 1000

Kind = tuple[str, Outcome, str]  # listener, reason, client's address ("" for those beyond KINDS)


class Counted:
    """Refusals of one kind since they were told of last."""

    __slots__ = ("bytes_down", "bytes_up", "count")

    def __init__(self) -> None:
        self.count = self.bytes_up = self.bytes_down = 0


class RefusalLog:
    """Stands before the access log, and lets everything through but repeated refusals.

    `line` writes the line of one connection, `write` any line; `clock` is monotonic seconds.
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
        self._kinds: dict[Kind, Counted] = {}
        self._began = clock()

    def __call__(self, connection: Record, outcome: Outcome, seconds: float) -> None:
        if not outcome.early:
            self._line(connection, outcome, seconds)
            return
        kind: Kind = (connection.frontend.name, outcome, connection.client[0])
        counted = self._kinds.get(kind)
        if counted is None:
            if len(self._kinds) < KINDS:
                self._kinds[kind] = Counted()
                self._line(connection, outcome, seconds)
                return
            kind = (kind[0], outcome, "")
            counted = self._kinds.get(kind)
            if counted is None:  # there are few of these: one for each listener and reason
                counted = self._kinds[kind] = Counted()
        counted.count += 1
        counted.bytes_up += connection.bytes_up
        counted.bytes_down += connection.bytes_down

    def tick(self, now: float) -> None:
        """Tell of what was counted, if it is time to; now and then."""
        if now - self._began >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Tell of what was counted. Who was refused in this period needs no whole line in the next one."""
        now = self._clock()
        seconds, self._began = now - self._began, now
        before, self._kinds = self._kinds, {}
        for kind, counted in before.items():
            if counted.count:
                self._write(self._told(kind, counted, seconds))
                if kind[2]:
                    self._kinds[kind] = Counted()

    def _told(self, kind: Kind, counted: Counted, seconds: float) -> str:
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
