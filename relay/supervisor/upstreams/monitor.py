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
from relay.settings.inherited import UpstreamCheck, upstream_checks
from relay.settings.model import Settings
from relay.supervisor.instance import complete_names
from relay.supervisor.probe import Tls
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.health_check import Check, HealthChecker, Target
from relay.supervisor.upstreams.name_cache import Answer, NameCache
from relay.supervisor.upstreams.resolver import Resolver


class UpstreamState(NamedTuple):
    """One upstream as an operator sees it."""

    addresses: tuple[tuple[str, bool], ...]  # host:port, and whether it is up
    error: str  # why the upstream has no addresses
    answer_age: float | None  # seconds since the name's last good answer; None: no good answer yet, or no name
    barred: Mapping[str, str] = {}  # addresses (host:port) that are never dialled, each with the reason
    known: bool = True  # False: the first look-up of the name has not ended yet
    failures: Mapping[str, str] = {}  # addresses (host:port) that their checks found down, each with the reason
    certificate_expiry: float | None = None  # seconds since the epoch; None: not checked by TLS, or not yet verified

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
        self._checks = _checks(settings, self._upstreams)
        self._checker = HealthChecker(changed=self._on_health_change, log=self._log, barred=self._update_barred)
        self._current: dict[int, list[Target]] = {}  # what is checked of each upstream, by its number
        self._shared: dict[Target, set[int]] = {}  # the same the other way round
        self._down: set[tuple[int, Target]] = set()  # as last sent to the workers, with the upstream's number
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
        self._checks = _checks(settings, self._upstreams)  # an address that is checked in another way starts as up
        self.start()

    def _set_upstreams(self, upstreams: Mapping[int, str]) -> None:
        self.version += 1
        self._upstreams = _parsed(upstreams)
        # With a thousand upstreams, to parse each address at each answer would take seconds.
        self._literals = {(host, port): literal(host, port) for host, port in self._upstreams.values()}
        self._numbers: dict[str, list[int]] = {}  # of the upstreams with this name
        for number, (host, port) in self._upstreams.items():
            if self._literals[host, port] is None:
                self._numbers.setdefault(host, []).append(number)
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
            self._numbers,
            min_ttl=dns.min_ttl,
            max_ttl=dns.max_ttl,
            hold=dns.hold,
            clock=asyncio.get_running_loop().time,
            changed=self._on_answer,
            log=self._log,
            before=before,
            optional=self._optional,
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
        answers = {host: self._names.answer(host) for host in self._numbers}
        resolved = [Resolved(host, answer.addresses) for host, answer in answers.items() if answer is not None]
        down = [(n, target) for n in self._upstreams for target in self._targets(n) if not self._checker.up(target)]
        return [
            self._barred_message(),
            *resolved,
            AllUp(),
            *(_checked(number, target, up=False) for number, target in down),
        ]

    def failing(self, hosts: Iterable[str]) -> None:
        """A worker could connect to no address of these hosts: resolve and check them again at once."""
        for number, (host, port) in self._upstreams.items():
            if host in hosts:
                if host in self._numbers:
                    self._names.refresh(host)
                for address in self._addresses_of(host, port):
                    self._update_barred(address)
                    self._checker.check_now((address, self._checks[number]))

    def unresolved(self) -> list[str]:
        """Names that have to resolve, and whose first look-up has not ended yet."""
        return [host for host in self._numbers if host not in self._optional and not self._names.answer(host)]

    def state(self, number: int) -> UpstreamState:
        """The state of one upstream, by its number."""
        host, port = self._upstreams[number]
        addresses: dict[str, bool] = {}
        barred: dict[str, str] = {}
        failures: dict[str, str] = {}
        expiries: list[float] = []
        for address in self._addresses_of(host, port):
            text, target = format_hostport(address[0], address[1]), (address, self._checks[number])
            addresses[text] = self._checker.up(target) and address not in self._barred
            if address in self._barred:
                barred[text] = OWN
            elif failure := self._checker.failure(target):
                failures[text] = failure
            if (expiry := self._checker.expiry(target)) is not None:
                expiries.append(expiry)
        first = min(expiries, default=None)
        if host not in self._numbers:
            return UpstreamState(tuple(addresses.items()), "", None, barred, True, failures, first)
        for refused, why in self._names.refused(host):
            text = format_hostport(refused, port)
            addresses[text], barred[text] = False, why
        answer = self._names.answer(host)
        error = answer.error if answer is not None else ""
        age, known = self._names.age(host), answer is not None
        return UpstreamState(tuple(addresses.items()), error, age, barred, known, failures, first)

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

    def _targets(self, number: int) -> list[Target]:
        """What is to be checked of one upstream; nothing of one that a reload has removed."""
        if number not in self._upstreams:
            return []
        host, port = self._upstreams[number]
        return [(address, self._checks[number]) for address in self._addresses_of(host, port)]

    def _update_addresses(self, host: str | None = None) -> None:
        """Bar and check the addresses of all upstreams as they are now; only those of `host` may be new, if given."""
        if self._barred:
            addresses = {target[0] for number in self._upstreams for target in self._targets(number)}
            if self._barred.difference(addresses):
                self._barred.intersection_update(addresses)
                self._broadcast(self._barred_message())
        # With a thousand upstreams, to look at each of them at each answer would take seconds.
        numbers = {*self._upstreams, *self._current} if host is None else self._numbers.get(host, ())
        wanted = {number: self._targets(number) for number in numbers}
        for address, _ in (target for targets in wanted.values() for target in targets):
            self._update_barred(address)  # workers must know a barred address before they learn of the address itself
        touched: set[Target] = set()
        added: list[tuple[int, Target]] = []
        for number, targets in wanted.items():
            before = self._current.get(number, [])
            self._current[number] = targets
            for target in set(before).difference(targets):
                touched.add(target)
                self._shared[target].discard(number)
                # It may come back, and starts as up then: no check would tell the workers.
                if (number, target) in self._down:
                    self._send_health(number, target, up=True)
            for target in dict.fromkeys(targets):
                if target not in before:
                    touched.add(target)
                    self._shared.setdefault(target, set()).add(number)
                    added.append((number, target))
        gone = [target for target in touched if not self._shared[target]]
        for target in gone:
            del self._shared[target]
        self._checker.update(gone, (target for _, target in added))
        for number, target in added:
            if not self._checker.up(target):  # as the checks of another upstream have found before
                self._send_health(number, target, up=False)

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

    def _on_health_change(self, target: Target, up: bool) -> None:
        self.version += 1
        for number in sorted(self._shared[target]):
            self._send_health(number, target, up)
        self._changed()

    def _send_health(self, number: int, target: Target, up: bool) -> None:
        (self._down.discard if up else self._down.add)((number, target))
        self._broadcast(_checked(number, target, up))


def _parsed(upstreams: Mapping[int, str]) -> dict[int, tuple[str, int]]:
    return {number: parse_hostport(text, allow_name=True) for number, text in upstreams.items()}


def _checked(number: int, target: Target, up: bool) -> Checked:
    address, _ = target
    return Checked(number, address[0], address[1], up)


def _checks(settings: Settings, upstreams: Mapping[int, tuple[str, int]]) -> dict[int, Check]:
    """How each upstream is checked, by number."""
    own, timeout = upstream_checks(settings.health_check, settings.listeners), settings.dial.connect_timeout
    found: dict[int, Check] = {}
    for number, (host, port) in upstreams.items():
        check = own.get(format_hostport(host, port)) or UpstreamCheck(settings.health_check, 0)
        of = check.settings
        tls = Tls(host, check.send_proxy) if of.tls else None
        found[number] = Check(of.interval, of.rise, of.fall, timeout, tls)
    return found
