"""What the supervisor knows of the upstreams: their addresses, and whether these can be reached; told to all workers.

Names are resolved and addresses checked here, once, however many workers and connections there are. A worker that
starts is told everything first, and then each change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from relay.address import Address, format_hostport, literal, parse_hostport
from relay.ipc.messages import AllUp, Barred, Checked, Message, Resolved
from relay.own_addresses import OWN
from relay.settings.model import Settings
from relay.supervisor.instance import complete_names
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.health_check import HealthChecker
from relay.supervisor.upstreams.name_cache import Answer, NameCache
from relay.supervisor.upstreams.resolver import Resolver


class UpstreamState(NamedTuple):
    """One upstream as an operator sees it."""

    addresses: tuple[tuple[str, bool], ...]  # host:port, and whether it is up
    error: str  # why there are no addresses
    answer_age: float | None  # seconds since the name's last good answer; None: there was none, or it is no name
    barred: Mapping[str, str] = {}  # why some of the addresses, host:port, are never dialled

    @property
    def up(self) -> bool:
        return any(up for _, up in self.addresses)


class UpstreamMonitor:
    """Watches `upstreams` (host:port by number). `tell` sends a message to every worker; `changed` is called then.

    `own` says of an address and its port whether that is this relay itself. Such an address is neither dialled nor
    checked while that is so, which is asked again whenever it would be checked.
    """

    def __init__(
        self,
        settings: Settings,
        upstreams: Mapping[int, str],
        nameservers: tuple[tuple[str, int], ...],
        tell: Callable[[Message], None],
        changed: Callable[[], None],
        log: Any,
        own: Callable[[str, int], bool] = lambda _host, _port: False,
    ) -> None:
        self._own = own
        self._barred: set[Address] = set()  # what workers were told of
        self._tell = tell
        self._changed = changed
        self._log = log
        self._upstreams = _parsed(upstreams)
        self._resolver: Resolver | None = None
        self._names = self._name_service(settings, nameservers, None)
        self._checks = _checks(settings)
        self._checker = self._health_checker()
        self._down: set[Address] = set()  # what workers were told of
        self._resolving: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()  # what has to end since a reload

    def start(self) -> None:
        """Begin to resolve and to check."""
        self._resolving = asyncio.create_task(keep_running("names", self._names.run, self._log))
        self._watch_addresses()

    def configure(
        self, settings: Settings, upstreams: Mapping[int, str], nameservers: tuple[tuple[str, int], ...]
    ) -> None:
        """Watch these upstreams from now on, as the settings say; what is known of them is kept.

        At once, for somebody may ask in the next moment; what was doing it until now ends by the way. Workers are not
        told: their greeting has all of it.
        """
        self._leave(self._stop_resolving())
        self._upstreams = _parsed(upstreams)
        self._names = self._name_service(settings, nameservers, self._names)
        if self._checks != _checks(settings):
            self._leave(self._checker.stop())
            self._checks = _checks(settings)
            self._checker = self._health_checker()
            self._down.clear()  # all begin as up
        self.start()

    def _leave(self, end: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(end)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _name_service(
        self, settings: Settings, nameservers: tuple[tuple[str, int], ...], before: NameCache | None
    ) -> NameCache:
        dns = settings.dns
        self._resolver = Resolver(nameservers, complete=complete_names(settings), before=self._resolver)
        return NameCache(
            self._resolver,
            dict.fromkeys(host for host, port in self._upstreams.values() if literal(host, port) is None),
            min_ttl=dns.min_ttl,
            max_ttl=dns.max_ttl,
            hold=dns.hold,
            clock=asyncio.get_running_loop().time,
            changed=self._resolved,
            log=self._log,
            before=before,
        )

    def _health_checker(self) -> HealthChecker:
        interval, rise, fall, timeout = self._checks
        return HealthChecker(
            interval=interval,
            rise=rise,
            fall=fall,
            timeout=timeout,
            changed=self._checked,
            log=self._log,
            barred=self._judge,
        )

    def _stop_resolving(self) -> Coroutine[Any, Any, None]:
        task, self._resolving = self._resolving, None

        async def stop() -> None:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        return stop()

    async def stop(self) -> None:
        """End all of it."""
        await self._stop_resolving()
        await self._checker.stop()
        await asyncio.gather(*self._leaving)

    def greeting(self) -> list[Message]:
        """What a worker has to know that starts, or has missed something."""
        answers = {
            host: self._names.answer(host) for host, port in self._upstreams.values() if literal(host, port) is None
        }
        resolved = [Resolved(host, answer.addresses) for host, answer in answers.items() if answer is not None]
        down = [address for address in self._addresses() if not self._checker.up(address)]
        return [self._barred_now(), *resolved, AllUp(), *(Checked(address[0], address[1], False) for address in down)]

    def failing(self, hosts: Iterable[str]) -> None:
        """A worker could connect to no address of these hosts: ask again, check at once."""
        for host, port in self._upstreams.values():
            if host in hosts:
                if literal(host, port) is None:
                    self._names.refresh(host)
                for address in self._addresses_of(host, port):
                    self._judge(address)
                    self._checker.check_now(address)

    def unresolved(self) -> list[str]:
        """Names without a first answer, good or bad."""
        return [
            host
            for host, port in self._upstreams.values()
            if literal(host, port) is None and not self._names.answer(host)
        ]

    def state(self, number: int) -> UpstreamState:
        """One upstream, by its number."""
        host, port = self._upstreams[number]
        addresses: dict[str, bool] = {}
        barred: dict[str, str] = {}
        for address in self._addresses_of(host, port):
            text = format_hostport(address[0], address[1])
            addresses[text] = self._checker.up(address) and address not in self._barred
            if address in self._barred:
                barred[text] = OWN
        if literal(host, port) is not None:
            return UpstreamState(tuple(addresses.items()), "", None, barred)
        for refused, why in self._names.refused(host):
            text = format_hostport(refused, port)
            addresses[text], barred[text] = False, why
        answer = self._names.answer(host)
        error = answer.error if answer is not None else ""
        return UpstreamState(tuple(addresses.items()), error, self._names.age(host), barred)

    def ages(self) -> dict[str, float]:
        """Seconds since each name's last good answer."""
        return self._names.ages()

    def _addresses_of(self, host: str, port: int) -> list[Address]:
        address = literal(host, port)
        if address is not None:
            return [address]
        answer = self._names.answer(host)
        found = [literal(text, port) for text in answer.addresses] if answer is not None else []
        return [address for address in found if address is not None]

    def _addresses(self) -> list[Address]:
        return [address for host, port in self._upstreams.values() for address in self._addresses_of(host, port)]

    def _watch_addresses(self) -> None:
        current = self._addresses()
        if self._barred.difference(current):
            self._barred.intersection_update(current)
            self._tell(self._barred_now())
        for address in current:
            self._judge(address)  # before workers are told of it
        self._checker.set_addresses(current)
        # Should one come back it begins as up, and nobody would tell the workers.
        for address in self._down.difference(current):
            self._tell_checked(address, up=True)

    def _judge(self, address: Address) -> bool:
        """Whether the address is this relay itself, now; workers are told when that is new."""
        own, text = self._own(address[0], address[1]), format_hostport(address[0], address[1])
        if own and address not in self._barred:
            self._barred.add(address)
            self._log.warning("upstream down", address=text, reason=OWN)
        elif not own and address in self._barred:
            self._barred.discard(address)
            self._log.info("upstream up", address=text)
        else:
            return own
        self._tell(self._barred_now())
        self._changed()
        return own

    def _barred_now(self) -> Barred:
        return Barred(tuple(sorted(format_hostport(address[0], address[1]) for address in self._barred)))

    def _resolved(self, host: str, answer: Answer) -> None:
        self._watch_addresses()
        self._tell(Resolved(host, answer.addresses))
        self._changed()

    def _checked(self, address: Address, up: bool) -> None:
        self._tell_checked(address, up)
        self._changed()

    def _tell_checked(self, address: Address, up: bool) -> None:
        (self._down.discard if up else self._down.add)(address)
        self._tell(Checked(address[0], address[1], up))


def _parsed(upstreams: Mapping[int, str]) -> dict[int, tuple[str, int]]:
    return {number: parse_hostport(text, allow_name=True) for number, text in upstreams.items()}


def _checks(settings: Settings) -> tuple[float, int, int, float]:
    """What a checker is made from: interval, rise, fall and timeout."""
    checks = settings.health_check
    return checks.interval, checks.rise, checks.fall, settings.dial.connect_timeout
