"""What the supervisor tells the workers of upstreams, with a real name server and real checks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import structlog

from relay.control import AllUp, Checked, Message, Resolved
from relay.settings import load
from relay.watch import UpstreamWatch
from tests.dns_server import NameServer
from tests.upstreams import Echo, refusing

NAME = "hub.example"
TOML = """
upstream = ["hub.example"]
[dns]
min_ttl = 1.0
[health_check]
interval = 0.05
"""


class Told:
    """Every message, and a way to wait for one."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._changed.set()

    async def wait(self, message: Message) -> None:
        async with asyncio.timeout(20):
            while message not in self.messages:
                self._changed.clear()
                await self._changed.wait()


def watch(path: Path, names: NameServer, port: int, told: Told) -> UpstreamWatch:
    file = path / "relay.toml"
    file.write_text(TOML)
    log: Any = structlog.get_logger()
    return UpstreamWatch(load(file, {}), {0: f"{NAME}:{port}"}, (names.address,), told, lambda: None, log)


async def test_an_address_that_was_down_when_it_vanished_is_not_down_when_it_comes_back(tmp_path: Path) -> None:
    with refusing() as (_, port), NameServer({NAME: ["127.0.0.1"]}, ttl=1) as names:
        told = Told()
        watched = watch(tmp_path, names, port, told)
        watched.start()
        try:
            await told.wait(Checked("127.0.0.1", port, False))
            assert told.messages[0] == Resolved(NAME, ("127.0.0.1",))
            names.addresses[NAME] = ["127.0.0.2"]
            await told.wait(Resolved(NAME, ("127.0.0.2",)))
            await told.wait(Checked("127.0.0.1", port, True))
        finally:
            await watched.stop()


async def test_a_worker_that_starts_is_told_everything(tmp_path: Path) -> None:
    with Echo() as echo, NameServer({NAME: ["127.0.0.1", "127.0.0.2"]}, ttl=300) as names:
        told = Told()
        watched = watch(tmp_path, names, echo.address[1], told)
        assert watched.greeting() == [AllUp()]
        assert watched.unresolved() == [NAME]
        watched.start()
        try:
            await told.wait(Checked("127.0.0.2", echo.address[1], False))  # the echo is on the other one
            resolved, all_up, checked = watched.greeting()
            assert all_up == AllUp(), "a worker that is told anew may have missed that something came up"
            assert isinstance(resolved, Resolved)
            assert set(resolved.addresses) == {"127.0.0.1", "127.0.0.2"}
            assert checked == Checked("127.0.0.2", echo.address[1], False)
            state = watched.state(0)
            assert state.up
            assert dict(state.addresses) == {
                f"127.0.0.1:{echo.address[1]}": True,
                f"127.0.0.2:{echo.address[1]}": False,
            }
            assert watched.unresolved() == []
        finally:
            await watched.stop()
