"""Real addresses on loopback that are opened and shut, and checkers of them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from relay.address import Address
from relay.supervisor.probe import Tls, probe
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tls_check import TrustStore
from relay.supervisor.upstreams.health_check import Check, HealthChecker
from tests.support.observe import PATIENCE
from tests.support.service_log import QuietLog

FAST = 0.02  # seconds between two checks
NEVER = 3600.0  # not within the time of a test
A: Address = ("192.0.2.1", 8883)
B: Address = ("2001:db8::1", 8883, 0, 0)
SHORT = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]


class Server:
    """An address on loopback that refuses until it is opened. Nobody else gets its port meanwhile."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._place = socket.socket(self._family)
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind((host, 0))
        self.address: Address = self._place.getsockname()
        self.listening: socket.socket | None = None

    def open(self, backlog: int = 1024) -> socket.socket:
        self.shut()
        self.listening = socket.create_server(self.address, family=self._family, reuse_port=True, backlog=backlog)
        self.listening.setblocking(False)
        return self.listening

    def shut(self) -> None:
        if self.listening is not None:
            self.listening.close()
            self.listening = None

    def close(self) -> None:
        self.shut()
        self._place.close()


class AddressChecker:
    """A checker of addresses, all by one check."""

    def __init__(
        self,
        *,
        changed: Callable[[Address, bool], None],
        log: ServiceLog,
        interval: float,
        rise: int,
        fall: int,
        timeout: float,
        tls: Tls | None = None,
    ) -> None:
        self.check = Check(interval, rise, fall, timeout, tls)
        self.checker = HealthChecker(changed=lambda target, up: changed(target[0], up), log=log)
        self._addresses: list[Address] = []

    def set_addresses(self, addresses: Iterable[Address]) -> None:
        before, self._addresses = self._addresses, list(addresses)
        gone = [address for address in before if address not in self._addresses]
        self.checker.update(
            [(address, self.check) for address in gone], [(address, self.check) for address in self._addresses]
        )

    def up(self, address: Address) -> bool:
        return self.checker.up((address, self.check))

    def failure(self, address: Address) -> str:
        return self.checker.failure((address, self.check))

    def expiry(self, address: Address) -> float | None:
        return self.checker.expiry((address, self.check))

    def check_now(self, address: Address) -> None:
        self.checker.check_now((address, self.check))

    async def stop(self) -> None:
        await self.checker.stop()


class Log(QuietLog):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []  # event, address, reason
        self.defects: list[str] = []  # what they were in

    def error(self, event: str, **fields: Any) -> None:
        assert fields["exc_info"]
        self.defects.append(fields["about"])

    def info(self, event: str, **fields: Any) -> None:
        assert fields.keys() <= {"address", "name", "reason"}
        self.lines.append((event, fields["address"], fields.get("reason", "")))

    warning = info


class Rig:
    """Checkers, what they said, and every check that has ended with its result."""

    def __init__(self) -> None:
        self.log = Log()
        self.changes: asyncio.Queue[tuple[Address, bool]] = asyncio.Queue()
        self.checked: list[tuple[Address, BaseException | None]] = []
        self.begun = asyncio.Event()
        self._ended: asyncio.Queue[None] = asyncio.Queue()
        self._probe = probe

    async def probe(self, address: Address, timeout: float, tls: Tls | None, trust: TrustStore) -> float:
        self.begun.set()
        error: BaseException | None = None
        try:
            return await self._probe(address, timeout, tls, trust)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.checked.append((address, error))
            self._ended.put_nowait(None)

    async def checks(self, more: int) -> None:
        """Wait for so many more checks."""
        self._ended = asyncio.Queue()
        async with asyncio.timeout(PATIENCE):
            for _ in range(more):
                await self._ended.get()

    async def change(self) -> tuple[Address, bool]:
        async with asyncio.timeout(PATIENCE):
            return await self.changes.get()

    @asynccontextmanager
    async def checker(
        self,
        *addresses: Address,
        interval: float = FAST,
        rise: int = 1,
        fall: int = 1,
        timeout: float = PATIENCE,
        tls: Tls | None = None,
    ) -> AsyncIterator[AddressChecker]:
        made = AddressChecker(
            interval=interval,
            rise=rise,
            fall=fall,
            timeout=timeout,
            tls=tls,
            changed=lambda address, up: self.changes.put_nowait((address, up)),
            log=self.log,
        )
        made.set_addresses(addresses)
        try:
            yield made
        finally:
            await made.stop()


def text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
