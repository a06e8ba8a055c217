"""What Azure announces for this machine becomes a drain: evicted, ended, rebooted or moved, nobody is cut off.

The drain fits the time that is left. Once nobody is connected the event is approved, so that the platform need not wait
for its time; if it is called off, or over and this machine still there, the instance serves again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from relay.core.scheduled_events import Notice
from relay.supervisor.azure.metadata import ScheduledEvents
from relay.supervisor.drainer import Drainer
from relay.supervisor.instance import StartError

# Seconds before its time that a drain for an event begins at the earliest, unless drains take longer: hardware that
# begins to fail is told of days before, a reboot a quarter of an hour.
AHEAD = 900.0
SLACK = (
    1.0  # seconds before an event's time that a drain is over: the service tells the time in whole ones, rounded down
)


class Evictions:
    """Follows the events of one machine.

    `drain(reason, left)` begins a drain that is over in `left` seconds; `longest` are the seconds that one takes with
    time enough.
    """

    def __init__(
        self, metadata_url: str, drain: Callable[[str, float], None], drainer: Drainer, longest: float, log: Any
    ) -> None:
        self._drain = drain
        self._drainer = drainer
        self._log = log
        self._begun: dict[str, Notice] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events = ScheduledEvents(
            metadata_url,
            self._begin,
            self._called_off,
            log,
            updated=self._begin,
            completed=self._called_off,
            ahead=max(AHEAD, longest),
        )

    def start(self) -> None:
        """Begin to ask."""
        self._events.start()

    async def stop(self) -> None:
        """Ask no more."""
        await self._events.stop()

    def drained(self) -> None:
        """Nobody is connected any more: the platform may begin."""
        for event_id in self._begun:
            self._spawn(self._events.approve(event_id))

    def taken_back(self) -> None:
        """An operator has put the instance back into service: events that are known by now do not want it out."""
        self._begun.clear()

    def snapshot(self) -> dict[str, Any]:
        """What /status shows."""
        state = self._events.state
        return {
            "ok": state.ok,
            "answer_age_seconds": None if state.answer_age is None else round(state.answer_age, 3),
            "error": state.error,
            "own_name": state.own_name,
            "own_name_error": state.own_name_error,
            "events": [
                {
                    "id": notice.event_id,
                    "type": notice.kind,
                    "status": notice.status,
                    "seconds_left": round(notice.seconds_left, 1),
                }
                for notice in state.events
            ],
        }

    def _begin(self, notice: Notice) -> None:
        self._begun[notice.event_id] = notice
        self._drain(f"scheduled event: {notice.kind}", max(0.0, notice.seconds_left - SLACK))
        if self._drainer.drained:
            self.drained()

    def _called_off(self, notice: Notice) -> None:
        self._begun.pop(notice.event_id, None)
        if self._begun:
            return
        try:
            self._drainer.call_off()
        except StartError as error:
            self._log.warning("still draining", reason="; ".join(error.problems))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
