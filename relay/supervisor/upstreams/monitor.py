"""Upstream state of the whole instance: each upstream's addresses and their health, sent to all workers.

The supervisor resolves names and checks addresses once, however many workers and connections there are. A worker that
starts gets the full state first (`greeting`), and then each change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from relay.address import Address, format_hostport, literal, parse_hostport
from relay.ipc.messages import AllUp, Barred, Checked, Message, Resolved
from relay.own_addresses import OWN
from relay.settings.model import Settings
from relay.supervisor.instance import complete_names
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.health_check import HealthChecker
from relay.supervisor.upstreams.name_cache import Answer, NameCache
from relay.supervisor.upstreams.resolver import Resolver


class UpstreamState(NamedTuple):
    """One upstream as an operator sees it."""

    addresses: tuple[tuple[str, bool], ...]  # host:port, and whether it is up
    error: str  # why the upstream has no addresses
    answer_age: float | None  # seconds since the name's last good answer; None: no good answer yet, or no name
    barred: Mapping[str, str] = {}  # addresses (host:port) that are never dialled, each with the reason
    known: bool = True  # False: the first look-up of the name has not ended yet

    @property
    def up(self) -> bool:
        return any(up for _, up in self.addresses)


class UpstreamMonitor:
    """Resolves and health-checks `upstreams` (host:port by number).

    `broadcast` sends a message to every worker; `changed` is called after each change of state. `own(host, port)` is
    True if that address is this relay itself. Such an address is barred: neither dialled nor checked. `own` is called
    again each time a check of the address is due. Names of `optional` need not resolve.
    """

    def __init__(
        self,
        settings: Settings,
        upstreams: Mapping[int, str],
        nameservers: tuple[tuple[str, int], ...],
        broadcast: Callable[[Message], None],
        changed: Callable[[], None],
        log: ServiceLog,
        own: Callable[[str, int], bool] = lambda _host, _port: False,
        optional: Collection[str] = (),
    ) -> None:
        self._optional = frozenset(optional)
        self._own = own
        self.version = 0  # counts the changes of state
        self._barred: set[Address] = set()  # as last sent to the workers
        self._broadcast = broadcast
        self._changed = changed
        self._log = log
        self._set_upstreams(upstreams)
        self._resolver: Resolver | None = None
        self._names = self._make_name_cache(settings, nameservers, None)
        self._check_parameters = _check_parameters(settings)
        self._checker = self._make_health_checker()
        self._down: set[Address] = set()  # as last sent to the workers
        self._resolving: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()  # tasks that a reload replaced, until they have ended

    def start(self) -> None:
        """Start resolving names and checking addresses."""
        self._resolving = asyncio.create_task(keep_running("names", self._names.run, self._log))
        self._update_addresses()

    def configure(
        self,
        settings: Settings,
        upstreams: Mapping[int, str],
        nameservers: tuple[tuple[str, int], ...],
        optional: Collection[str] = (),
    ) -> None:
        """Switch to these upstreams and settings; answers and health of upstreams that stay are kept.

        The switch is synchronous, so that the next call already sees the new state; the replaced tasks end in the
        background. Nothing is sent to the workers here: a reload sends them `greeting`.
        """
        self._end_in_background(self._stop_resolving())
        self._set_upstreams(upstreams)
        self._optional = frozenset(optional)
        self._names = self._make_name_cache(settings, nameservers, self._names)
        if self._check_parameters != _check_parameters(settings):
            self._end_in_background(self._checker.stop())
            self._check_parameters = _check_parameters(settings)
            self._checker = self._make_health_checker()
            self._down.clear()  # every address starts as up
        self.start()

    def _set_upstreams(self, upstreams: Mapping[int, str]) -> None:
        self.version += 1
        self._upstreams = _parsed(upstreams)
        # With a thousand upstreams, to parse each address at each answer would take seconds.
        self._literals = {(host, port): literal(host, port) for host, port in self._upstreams.values()}
        self._ports: dict[str, list[int]] = {}  # of the upstreams with this name
        for host, port in self._upstreams.values():
            if self._literals[host, port] is None:
                self._ports.setdefault(host, []).append(port)
        self._answered: dict[tuple[str, int], tuple[Answer, list[Address]]] = {}  # the addresses of the last answer

    def _end_in_background(self, end: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(end)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _make_name_cache(
        self, settings: Settings, nameservers: tuple[tuple[str, int], ...], before: NameCache | None
    ) -> NameCache:
        dns = settings.dns
        self._resolver = Resolver(nameservers, complete=complete_names(settings), before=self._resolver)
        return NameCache(
            self._resolver,
            self._ports,
            min_ttl=dns.min_ttl,
            max_ttl=dns.max_ttl,
            hold=dns.hold,
            clock=asyncio.get_running_loop().time,
            changed=self._on_answer,
            log=self._log,
            before=before,
            optional=self._optional,
        )

    def _make_health_checker(self) -> HealthChecker:
        interval, rise, fall, timeout = self._check_parameters
        return HealthChecker(
            interval=interval,
            rise=rise,
            fall=fall,
            timeout=timeout,
            changed=self._on_health_change,
            log=self._log,
            barred=self._update_barred,
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
        """Stop resolving and checking; returns when every task has ended."""
        await self._stop_resolving()
        await self._checker.stop()
        await asyncio.gather(*self._ending)

    def greeting(self) -> list[Message]:
        """The full state, as messages for a worker that has just started or has missed some."""
        answers = {host: self._names.answer(host) for host in self._ports}
        resolved = [Resolved(host, answer.addresses) for host, answer in answers.items() if answer is not None]
        down = [address for address in self._addresses() if not self._checker.up(address)]
        return [
            self._barred_message(),
            *resolved,
            AllUp(),
            *(Checked(address[0], address[1], False) for address in down),
        ]

    def failing(self, hosts: Iterable[str]) -> None:
        """A worker could connect to no address of these hosts: resolve and check them again at once."""
        for host, port in self._upstreams.values():
            if host in hosts:
                if host in self._ports:
                    self._names.refresh(host)
                for address in self._addresses_of(host, port):
                    self._update_barred(address)
                    self._checker.check_now(address)

    def unresolved(self) -> list[str]:
        """Names that have to resolve, and whose first look-up has not ended yet."""
        return [host for host in self._ports if host not in self._optional and not self._names.answer(host)]

    def state(self, number: int) -> UpstreamState:
        """The state of one upstream, by its number."""
        host, port = self._upstreams[number]
        addresses: dict[str, bool] = {}
        barred: dict[str, str] = {}
        for address in self._addresses_of(host, port):
            text = format_hostport(address[0], address[1])
            addresses[text] = self._checker.up(address) and address not in self._barred
            if address in self._barred:
                barred[text] = OWN
        if host not in self._ports:
            return UpstreamState(tuple(addresses.items()), "", None, barred)
        for refused, why in self._names.refused(host):
            text = format_hostport(refused, port)
            addresses[text], barred[text] = False, why
        answer = self._names.answer(host)
        error = answer.error if answer is not None else ""
        return UpstreamState(tuple(addresses.items()), error, self._names.age(host), barred, answer is not None)

    def ages(self) -> dict[str, float]:
        """Seconds since each name's last good answer."""
        return self._names.ages()

    def _addresses_of(self, host: str, port: int) -> list[Address]:
        address = self._literals[host, port]
        if address is not None:
            return [address]
        answer = self._names.answer(host)
        if answer is None:
            return []
        last = self._answered.get((host, port))
        if last is None or last[0] is not answer:
            found = [literal(text, port) for text in answer.addresses]
            last = self._answered[host, port] = answer, [address for address in found if address is not None]
        return last[1]

    def _addresses(self) -> list[Address]:
        return [address for host, port in self._upstreams.values() for address in self._addresses_of(host, port)]

    def _update_addresses(self, host: str | None = None) -> None:
        """Bar and check the addresses of all upstreams as they are now; only those of `host` may be new, if given."""
        current = self._addresses()
        if self._barred.difference(current):
            self._barred.intersection_update(current)
            self._broadcast(self._barred_message())
        fresh = (
            current
            if host is None
            else [a for port in self._ports.get(host, ()) for a in self._addresses_of(host, port)]
        )
        for address in fresh:
            self._update_barred(address)  # workers must know a barred address before they learn of the address itself
        self._checker.set_addresses(current)
        # The checker forgets a vanished address: if it comes back it starts as up, and no check would tell the workers.
        for address in self._down.difference(current):
            self._send_health(address, up=True)

    def _update_barred(self, address: Address) -> bool:
        """Whether the address is this relay itself now; a change is logged and sent to the workers."""
        own, text = self._own(address[0], address[1]), format_hostport(address[0], address[1])
        if own and address not in self._barred:
            self._barred.add(address)
            self._log.warning("upstream down", address=text, reason=OWN)
        elif not own and address in self._barred:
            self._barred.discard(address)
            self._log.info("upstream up", address=text)
        else:
            return own
        self.version += 1
        self._broadcast(self._barred_message())
        self._changed()
        return own

    def _barred_message(self) -> Barred:
        return Barred(tuple(sorted(format_hostport(address[0], address[1]) for address in self._barred)))

    def _on_answer(self, host: str, answer: Answer) -> None:
        self.version += 1
        self._update_addresses(host)
        self._broadcast(Resolved(host, answer.addresses))
        self._changed()

    def _on_health_change(self, address: Address, up: bool) -> None:
        self.version += 1
        self._send_health(address, up)
        self._changed()

    def _send_health(self, address: Address, up: bool) -> None:
        (self._down.discard if up else self._down.add)(address)
        self._broadcast(Checked(address[0], address[1], up))


def _parsed(upstreams: Mapping[int, str]) -> dict[int, tuple[str, int]]:
    return {number: parse_hostport(text, allow_name=True) for number, text in upstreams.items()}


def _check_parameters(settings: Settings) -> tuple[float, int, int, float]:
    """The parameters of a HealthChecker: interval, rise, fall and timeout."""
    checks = settings.health_check
    return checks.interval, checks.rise, checks.fall, settings.dial.connect_timeout
