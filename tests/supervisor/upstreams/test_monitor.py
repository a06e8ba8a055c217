"""What the supervisor tells the workers of upstreams, with a real name server and real checks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from relay.ipc.messages import AllUp, Barred, Checked, Message, Resolved
from relay.settings.model import load
from relay.supervisor.upstreams.monitor import UpstreamMonitor
from tests.supervisor.upstreams.tls_servers import OTHER, Authority, Ends, serving
from tests.support.dns_server import NameServer
from tests.support.upstreams import Echo, refusing

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


def watch(path: Path, names: NameServer, port: int, told: Told, own: set[str] | None = None) -> UpstreamMonitor:
    """`own` are the addresses of this relay itself."""
    file = path / "relay.toml"
    file.write_text(TOML)
    log: Any = structlog.get_logger()
    return UpstreamMonitor(
        load(file, {}),
        {0: f"{NAME}:{port}"},
        (names.address,),
        told,
        lambda: None,
        log,
        lambda host, _port: host in (own or ()),
    )


async def test_an_address_that_was_down_when_it_vanished_is_not_down_when_it_comes_back(tmp_path: Path) -> None:
    with refusing() as (_, port), NameServer({NAME: ["127.0.0.1"]}, ttl=1) as names:
        told = Told()
        watched = watch(tmp_path, names, port, told)
        watched.start()
        try:
            await told.wait(Checked(0, "127.0.0.1", port, False))
            assert told.messages[0] == Resolved(NAME, ("127.0.0.1",))
            names.addresses[NAME] = ["127.0.0.2"]
            await told.wait(Resolved(NAME, ("127.0.0.2",)))
            await told.wait(Checked(0, "127.0.0.1", port, True))
        finally:
            await watched.stop()


async def test_a_worker_that_starts_is_told_everything(tmp_path: Path) -> None:
    with Echo() as echo, NameServer({NAME: ["127.0.0.1", "127.0.0.2"]}, ttl=300) as names:
        told = Told()
        watched = watch(tmp_path, names, echo.address[1], told)
        assert watched.greeting() == [Barred(()), AllUp()]
        assert watched.unresolved() == [NAME]
        watched.start()
        try:
            await told.wait(Checked(0, "127.0.0.2", echo.address[1], False))  # the echo is on the other one
            barred, resolved, all_up, checked = watched.greeting()
            assert barred == Barred(())
            assert all_up == AllUp(), "a worker that is told anew may have missed that something came up"
            assert isinstance(resolved, Resolved)
            assert set(resolved.addresses) == {"127.0.0.1", "127.0.0.2"}
            assert checked == Checked(0, "127.0.0.2", echo.address[1], False)
            state = watched.state(0)
            assert state.up
            assert dict(state.addresses) == {
                f"127.0.0.1:{echo.address[1]}": True,
                f"127.0.0.2:{echo.address[1]}": False,
            }
            assert watched.unresolved() == []
        finally:
            await watched.stop()


async def test_an_address_of_its_own_is_barred_before_anybody_is_told_of_it_and_never_checked(tmp_path: Path) -> None:
    with Echo() as echo, NameServer({NAME: ["127.0.0.1"]}, ttl=300) as names:
        told, port = Told(), echo.address[1]
        own = {"127.0.0.1"}
        watched = watch(tmp_path, names, port, told, own)
        watched.start()
        try:
            await told.wait(Resolved(NAME, ("127.0.0.1",)))
            assert told.messages == [Barred((f"127.0.0.1:{port}",)), Resolved(NAME, ("127.0.0.1",))]
            assert watched.greeting()[0] == Barred((f"127.0.0.1:{port}",))
            state = watched.state(0)
            assert (state.up, state.addresses) == (False, ((f"127.0.0.1:{port}", False),))
            assert state.barred == {f"127.0.0.1:{port}": "this relay's own address"}
            await asyncio.sleep(0.3)  # some intervals; that nothing comes cannot be waited for
            assert echo.served == 0
            own.clear()  # it has moved to another machine
            await told.wait(Barred(()))
            assert watched.state(0).up
        finally:
            await watched.stop()


async def test_addresses_that_are_never_dialled_are_shown_with_the_reason(tmp_path: Path) -> None:
    with Echo() as echo, NameServer({NAME: ["0.0.0.0", "127.0.0.1"]}, ttl=300) as names:
        told, port = Told(), echo.address[1]
        watched = watch(tmp_path, names, port, told)
        watched.start()
        try:
            await told.wait(Resolved(NAME, ("127.0.0.1",)))
            state = watched.state(0)
            assert dict(state.addresses) == {f"127.0.0.1:{port}": True, f"0.0.0.0:{port}": False}
            assert state.barred == {f"0.0.0.0:{port}": "the unspecified address, which is this machine"}
        finally:
            await watched.stop()


async def test_an_address_is_checked_for_each_upstream_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names of one address: it has a certificate for one of them, and a third upstream asks for none."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    names = NameServer({NAME: ["127.0.0.1"], OTHER: ["127.0.0.1"]}, ttl=300)
    async with serving(Ends(), authority.context()) as address:
        port = address[1]
        listener = '[[listeners]]\nname = "{}"\nbind = ["127.0.0.1:{}"]\nupstream = ["{}"]\n{}\n'
        file = tmp_path / "relay.toml"
        file.write_text(
            "[health_check]\ninterval = 0.05\nfall = 1\ntls = true\n"
            + listener.format("one", 1, f"{NAME}:{port}", "")
            + listener.format("two", 2, f"{OTHER}:{port}", "")
            + listener.format("three", 3, f"127.0.0.1:{port}", "health_check.tls = false")
        )
        told = Told()
        log: Any = structlog.get_logger()
        upstreams = {0: f"{NAME}:{port}", 1: f"{OTHER}:{port}", 2: f"127.0.0.1:{port}"}
        settings = load(file, {})
        with names:
            watched = UpstreamMonitor(settings, upstreams, (names.address,), told, lambda: None, log)
            watched.start()
            try:
                await told.wait(Checked(1, "127.0.0.1", port, False))
                assert watched.greeting()[-1] == Checked(1, "127.0.0.1", port, False), "and no other"
                state = watched.state(1)
                assert not state.up
                assert state.failures == {f"127.0.0.1:{port}": f"certificate of another name: not valid for {OTHER}"}
                assert state.certificate_expiry is None
                async with asyncio.timeout(20):
                    while watched.state(0).certificate_expiry is None:  # noqa: ASYNC110 - no event tells of it
                        await asyncio.sleep(0.01)
                assert watched.state(0).up
                assert watched.state(2).up
                file.write_text(file.read_text().replace("tls = true", "tls = false"))
                watched.configure(load(file, {}), upstreams, (names.address,))
                await told.wait(Checked(1, "127.0.0.1", port, True))
                assert watched.state(1).up, "checked in another way, and so it starts as up"
                assert watched.state(0).certificate_expiry is None
            finally:
                await watched.stop()
