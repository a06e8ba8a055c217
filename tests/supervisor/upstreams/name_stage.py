"""A name cache in virtual time: scripted look-ups, and what the cache made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from relay.supervisor.upstreams.name_cache import Answer, NameCache
from relay.supervisor.upstreams.resolver import Lookup, Resolver
from tests.support.service_log import QuietLog
from tests.support.virtual_time import BEGIN, run

HUB = "myhub.azure-devices.example"
PRIVATE = "myhub.privatelink.azure-devices.example"
ONE, TWO, SIX = "192.0.2.1", "192.0.2.2", "2001:db8::1"
NEVER = 1e9  # seconds


class Log(QuietLog):
    """The service log: what was said, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.said = asyncio.Event()

    def info(self, event: str, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._say("error", event, fields)

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.lines.append((level, event, fields))
        self.said.set()

    def events(self) -> list[str]:
        return [event for _level, event, _fields in self.lines]


Step = tuple[float, Lookup | Exception]  # seconds that a look-up takes, and what comes of it


def good(*addresses: str, ttl: float = 100.0, unanswered: str = "", takes: float = 0.0) -> Step:
    return takes, Lookup(addresses, "", ttl, unanswered)


def bad(error: str = "SERVFAIL", takes: float = 0.0) -> Step:
    return takes, Lookup((), error)


class Script(Resolver):
    """Look-ups of each name as written down; the last step is repeated for ever. Notes when they begin and end."""

    def __init__(self, steps: dict[str, list[Step]], complete: tuple[str, ...] = ()) -> None:
        super().__init__([("127.0.0.1", 9)], complete=complete)
        self._steps = {name: iter(row) for name, row in steps.items()}
        self._last = {name: row[-1] for name, row in steps.items()}
        self.begun: dict[str, list[float]] = {name: [] for name in steps}
        self.results: dict[str, list[tuple[float, Lookup | Exception]]] = {name: [] for name in steps}
        self.under_way: set[str] = set()

    async def resolve(self, host: str) -> Lookup:
        loop = asyncio.get_running_loop()
        assert host not in self.under_way, "two look-ups of one name at a time"
        self.under_way.add(host)
        self.begun[host].append(loop.time() - BEGIN)
        try:
            takes, result = next(self._steps[host], self._last[host])
            await asyncio.sleep(takes)
        finally:
            self.under_way.discard(host)
        self.results[host].append((loop.time() - BEGIN, result))
        if isinstance(result, Exception):
            raise result
        return result


class Stage:
    """A name cache in virtual time, with its log and its `changed` calls. Times are seconds since its start."""

    def __init__(
        self,
        steps: dict[str, list[Step]] | list[Step],
        before: NameCache | None = None,
        complete: tuple[str, ...] = (),
        optional: tuple[str, ...] = (),
        **options: float,
    ):
        self.script = Script(steps if isinstance(steps, dict) else {HUB: steps}, complete)
        self.log = Log()
        self.told: list[tuple[float, str, Answer]] = []
        loop = asyncio.get_running_loop()
        self.service = NameCache(
            self.script,
            self.script.begun,
            min_ttl=options.get("min_ttl", 5.0),
            max_ttl=options.get("max_ttl", 300.0),
            hold=options.get("hold", 3600.0),
            clock=loop.time,
            changed=lambda name, answer: self.told.append((loop.time() - BEGIN, name, answer)),
            log=self.log,
            before=before,
            optional=optional,
        )
        self._task = loop.create_task(self.service.run())

    async def until(self, moment: float) -> None:
        await asyncio.sleep(moment - (asyncio.get_running_loop().time() - BEGIN))

    async def end(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task

    @property
    def begun(self) -> list[float]:
        return self.script.begun[HUB]

    def answers(self) -> list[Answer]:
        return [answer for _moment, _name, answer in self.told]


def staged(test: Callable[[], Any]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__, in_virtual_time.__doc__ = test.__name__, test.__doc__
    return in_virtual_time
