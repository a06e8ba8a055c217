"""Host names to addresses: dnspython for DNS, /etc/hosts before it, each answer kept as long as its TTL says.

One look-up per name is under way at a time, however many connections wait for it. A failure is remembered for a second,
so that a crowd of connections does not become a crowd of queries. Health of the answers, refreshing ahead of time and
holding on to old ones are not this file's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.nameserver import Do53Nameserver

logger = logging.getLogger("relay.resolve")

FAILURE_TTL = 1.0  # seconds
LEAST_TTL = 1.0  # seconds; an answer with TTL 0 serves those who wait for it and the crowd right behind them
SECOND_ANSWER = 0.05  # seconds that IPv6 addresses are waited for once IPv4 ones are there, RFC 8305 section 3
LIFETIME = 5.0  # seconds that one look-up may take, all name servers and retries together


class Lookup(NamedTuple):
    """The result of a look-up: literal addresses, IPv4 first; none and the reason when it failed."""

    addresses: tuple[str, ...]
    expires: float  # monotonic seconds
    error: str = ""


class Resolver:
    """Look-ups for one process. `nameservers` are (address, port); none: those of /etc/resolv.conf."""

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]],
        clock: Callable[[], float],
        hosts_file: Path = Path("/etc/hosts"),
    ) -> None:
        self._clock = clock
        self._hosts_file = hosts_file
        self._answers: dict[str, Lookup] = {}
        self._waiting: dict[str, list[Callable[[Lookup], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolver = _system_resolver() if not nameservers else _resolver_for(nameservers)

    def lookup(self, host: str, done: Callable[[Lookup], None]) -> Lookup | None:
        """What is known of `host`; None if it has to be asked for: then `done` is called later, from the event loop."""
        known = self._answers.get(host)
        if known is not None and known.expires > self._clock():
            return known
        waiting = self._waiting.get(host)
        if waiting is not None:
            waiting.append(done)
            return None
        self._waiting[host] = [done]
        task = asyncio.get_running_loop().create_task(self._look_up(host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def resolve(self, host: str) -> Lookup:
        """Ask now, whatever is known. Never raises for a name that cannot be resolved."""
        if addresses := self._from_hosts_file(host):
            return Lookup(addresses, self._clock() + LEAST_TTL)
        if self._resolver is None:
            return Lookup((), self._clock() + FAILURE_TTL, "no name servers: /etc/resolv.conf names none")
        try:
            answers = await self._query(self._resolver, host)
        except (dns.exception.DNSException, OSError) as error:
            return Lookup((), self._clock() + FAILURE_TTL, _one_line(error))
        addresses = tuple(rdata.address for answer in answers for rdata in answer)
        if not addresses:
            return Lookup((), self._clock() + FAILURE_TTL, "the name has no addresses")
        # Aliases on the way count as well: a hub that fails over changes an alias, not an address.
        ttl = min(answer.chaining_result.minimum_ttl for answer in answers)
        return Lookup(addresses, self._clock() + max(LEAST_TTL, ttl))

    async def _query(self, resolver: dns.asyncresolver.Resolver, host: str) -> list[dns.resolver.Answer]:
        """A and AAAA at the same time: a server that is slow or broken for one does not spoil the other."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(resolver.resolve(host, kind, search=True, raise_on_no_answer=False, lifetime=LIFETIME))
            for kind in ("A", "AAAA")
        ]
        try:
            await asyncio.wait(tasks[:1])
            first_failed = tasks[0].exception() is not None or not tasks[0].result()
            await asyncio.wait(tasks[1:], timeout=None if first_failed else SECOND_ANSWER)
            answers = [task.result() for task in tasks if task.done() and task.exception() is None and task.result()]
            errors = [task.exception() for task in tasks if task.done()]
            for error in errors:
                if error is not None and not answers:
                    raise error
            return answers
        finally:
            for task in tasks:
                task.cancel()

    async def _look_up(self, host: str) -> None:
        before = self._answers.get(host)
        try:
            lookup = await self.resolve(host)
        except Exception as error:
            # Whatever it is, those who wait must not wait for ever.
            logger.exception("resolver failed")
            lookup = Lookup((), self._clock() + FAILURE_TTL, _one_line(error))
        self._answers[host] = lookup
        if lookup.error and (before is None or before.error != lookup.error):
            logger.warning("cannot resolve %s: %s", host, lookup.error)
        elif before is not None and before.error and not lookup.error:
            logger.warning("%s resolves again: %s", host, ", ".join(lookup.addresses))
        loop = asyncio.get_running_loop()
        for done in self._waiting.pop(host):
            loop.call_soon(done, lookup)  # one that fails does not keep the answer from the others

    def _from_hosts_file(self, host: str) -> tuple[str, ...]:
        try:
            text = self._hosts_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ()
        return parse_hosts(text, host)


def parse_hosts(text: str, host: str) -> tuple[str, ...]:
    """The addresses that a hosts(5) file gives for a name, IPv4 first; names compare without regard to case."""
    found: list[str] = []
    wanted = host.lower().rstrip(".")
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if len(fields) < 2 or wanted not in (name.lower().rstrip(".") for name in fields[1:]):
            continue
        try:
            address = str(ipaddress.ip_address(fields[0]))
        except ValueError:
            continue
        if address not in found:
            found.append(address)
    return tuple(sorted(found, key=lambda address: ":" in address))


def _system_resolver() -> dns.asyncresolver.Resolver | None:
    try:
        return dns.asyncresolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        return None


def _resolver_for(nameservers: Sequence[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    # Not `nameserver_ports`: that maps a host to one port, and two servers on one host would become one.
    resolver.nameservers = [Do53Nameserver(host, port) for host, port in nameservers]
    return resolver


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
