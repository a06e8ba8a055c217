"""Drains the instance for Azure's scheduled events, so that an eviction, reboot or move cuts no connection off.

The drain fits into the time left before the event. Once no connection is left the event is approved, so that Azure need
not wait for its time. If the event is cancelled, or is over and this machine still there, the instance serves again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from relay.core.scheduled_events import Notice
from relay.supervisor.azure.metadata import ScheduledEvents
from relay.supervisor.drainer import Drainer
from relay.supervisor.instance import StartError
from relay.supervisor.service_log import ServiceLog

# A drain starts at most this many seconds before its event, unless drains take longer: failing hardware is announced
# days ahead, a reboot a quarter of an hour.
MAX_LEAD = 900.0
# Seconds by which a drain ends before its event: the service's clock is in whole seconds, rounded down.
MARGIN = 1.0


class Evictions:
    """Turns the scheduled events of this machine into drains.

    `drain(reason, left)` begins a drain that ends within `left` seconds; `longest` is the duration in seconds of a
    drain that has time enough.
    """

    def __init__(
        self, metadata_url: str, drain: Callable[[str, float], None], drainer: Drainer, longest: float, log: ServiceLog
    ) -> None:
        self._drain = drain
        self._drainer = drainer
        self._log = log
        self._draining_for: dict[str, Notice] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events = ScheduledEvents(
            metadata_url,
            self._on_event,
            self._on_event_gone,
            log,
            updated=self._on_event,
            completed=self._on_event_gone,
            ahead=max(MAX_LEAD, longest),
        )

    def start(self) -> None:
        """Start polling the metadata service."""
        self._events.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._events.stop()

    def drained(self) -> None:
        """No connection is left: approve the events, so that the platform may begin."""
        for event_id in self._draining_for:
            self._spawn(self._events.approve(event_id))

    def taken_back(self) -> None:
        """An operator has undrained the instance: the events known so far no longer drain it."""
        self._draining_for.clear()

    def snapshot(self) -> dict[str, Any]:
        """The events' part of /status."""
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

    def _on_event(self, notice: Notice) -> None:
        self._draining_for[notice.event_id] = notice
        self._drain(f"scheduled event: {notice.kind}", max(0.0, notice.seconds_left - MARGIN))
        if self._drainer.drained:
            self.drained()

    def _on_event_gone(self, notice: Notice) -> None:
        self._draining_for.pop(notice.event_id, None)
        if self._draining_for:
            return
        try:
            self._drainer.call_off()
        except StartError as error:
            self._log.warning("still draining", reason="; ".join(error.problems))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
