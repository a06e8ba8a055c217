"""A client of a stand-in metadata service, what it told, and what it logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from relay.core.scheduled_events import Notice
from relay.supervisor.azure.metadata import ScheduledEvents, Timing
from tests.support.metadata_server import MetadataServer
from tests.support.observe import PATIENCE, wait_until
from tests.support.service_log import QuietLog

T = TypeVar("T")
FAST = Timing(poll=0.01, poll_most=0.04, connect=PATIENCE, call=PATIENCE, first=PATIENCE)


class Line(NamedTuple):
    """One line of the log."""

    level: str
    event: str
    fields: dict[str, Any]


class Log(QuietLog):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(Line("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(Line("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(Line("error", event, fields))

    def said(self, event: str) -> list[dict[str, Any]]:
        """The fields of the lines that say so."""
        return [line.fields for line in self.lines if line.event == event]


class Rig:
    """`told` has what the callbacks got: which one, and the notice."""

    def __init__(self, server: MetadataServer) -> None:
        self.server = server
        self.log = Log()
        self.told: list[tuple[str, Notice]] = []
        self.client: ScheduledEvents

    def callback(self, what: str) -> Callable[[Notice], None]:
        return lambda notice: self.told.append((what, notice))

    def kinds(self) -> list[tuple[str, str]]:
        """What was told, and of which kind of event."""
        return [(what, notice.kind) for what, notice in self.told]

    @asynccontextmanager
    async def watching(self, timing: Timing = FAST, url: str = "", **options: Any) -> AsyncIterator[ScheduledEvents]:
        self.client = ScheduledEvents(
            url or self.server.url,
            options.pop("begin", self.callback("begin")),
            self.callback("cancelled"),
            self.log,
            updated=self.callback("updated"),
            completed=self.callback("completed"),
            timing=timing,
            **options,
        )
        self.client.start()
        try:
            yield self.client
        finally:
            await self.client.stop()

    async def named(self) -> None:
        """Until the client knows what this machine is called."""
        await until(lambda: self.client._own_name)

    async def answered(self, more: int = 3) -> None:
        """So many more polls. One that was under way may have had an answer that is not wanted any more."""
        requests = self.server.events.requests
        wanted = len(requests) + more
        await until(lambda: len(requests) >= wanted)

    async def failed(self) -> str:
        """Until the last poll has failed; why."""
        await until(lambda: self.client._polls.ok is False)
        return self.client.state.error


async def until(look: Callable[[], T]) -> T:
    """`wait_until` beside a running loop."""
    return await asyncio.to_thread(wait_until, look)
