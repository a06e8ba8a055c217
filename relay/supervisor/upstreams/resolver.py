"""Host names to addresses: a single look-up, with dnspython for DNS and /etc/hosts before it.

The search list is ours (`core.search_list`): each candidate is asked for by its absolute name, and the first in order
that has addresses is the answer, with both families. One that fails, or has none, is passed over. Keeping answers,
refreshing them ahead of time and holding on to old ones are `relay.names`'s.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.resolver
from dns.nameserver import Nameserver

from relay.address import format_hostport
from relay.core import search_list
from relay.core.destinations import canonical, why_never
from relay.core.search_list import SearchList
from relay.supervisor.upstreams.watched_file import WatchedFile

LIFETIME = 5.0  # seconds that one look-up may take, all candidates, name servers and retries together
NEXT_SERVER = 1.0  # seconds without an answer, after which the next name server is asked as well
# Seconds that one family's addresses are waited for once the other's are there, and an earlier candidate once a later
# one has addresses: longer than NEXT_SERVER, so that a lost datagram does not cost a family, or a candidate its place.
SECOND_ANSWER = 1.5
NEXT_CANDIDATE = 1.5  # seconds without a result, after which the next candidate is asked for as well
DNS_PORT = 53
RESOLV_CONF = Path("/etc/resolv.conf")


class Lookup(NamedTuple):
    """The result of a look-up: literal addresses, IPv4 first; none and the reason when it failed."""

    addresses: tuple[str, ...]
    error: str = ""
    ttl: float = 0.0  # seconds, as the answer has it: the least of A, AAAA and the aliases on the way; 0: hosts file
    unanswered: str = ""  # "A" or "AAAA" if that question got no answer, or a failure, while the other one did
    source: str = ""  # the absolute name that has the addresses; "": the hosts file
    failed: tuple[str, ...] = ()  # candidates before that one which got no answer, or a failure
    refused: tuple[tuple[str, str], ...] = ()  # addresses that are never dialled, and why


class Resolver:
    """Look-ups for one process. `nameservers` are (address, port); none: /etc/resolv.conf's, and its search list.

    `complete` are the names that stand for themselves alone, because they were written with a dot at the end. The
    system's file is read again whenever it has changed. One that names no server is as good as the one before it: it
    may be just being written. From `before`, the resolver of an earlier configuration, what was read of the system's
    files is taken over.
    """

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]],
        hosts_file: Path = Path("/etc/hosts"),
        complete: Collection[str] = (),
        before: Resolver | None = None,
    ) -> None:
        self.complete = frozenset(complete)
        self._hosts: WatchedFile[dict[str, tuple[str, ...]]] = (
            before._hosts if before is not None else WatchedFile(hosts_file, parse_hosts, {})
        )
        self._from_system: WatchedFile[_System | None] | None = None
        self._current: _System | None = None
        if nameservers:
            self._current = _System(_asking(dns.asyncresolver.Resolver(configure=False), nameservers), SearchList())
        elif before is not None and before._from_system is not None:
            self._from_system, self._current = before._from_system, before._current
        else:
            self._from_system = WatchedFile(RESOLV_CONF, _parse_system, None)

    async def resolve(self, host: str) -> Lookup:
        """Ask now, whatever is known; never raises for a name that has no answer.

        Takes LIFETIME seconds at most, and in the first look-ups those that a file system needs that does not answer.
        """
        hosts = await self._hosts.current()
        if addresses := hosts.get(host.lower().rstrip(".")):
            return _usable(Lookup(addresses), host)
        if self._from_system is not None:
            self._current = await self._from_system.current() or self._current
        if self._current is None:
            return Lookup((), f"no name servers: {RESOLV_CONF} names none")
        resolver, search = self._current
        name = f"{host}." if host in self.complete else host
        return _usable(await _search(resolver, search_list.candidates(name, search)), host)


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """The addresses of each name in a hosts(5) file, IPv4 first.

    Names are without regard to case and to a dot at the end: keys are in lower case, and without it. Lines whose
    address is none, or has a zone id, say nothing.
    """
    found: dict[str, dict[str, None]] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if len(fields) < 2:
            continue
        try:
            address = canonical(fields[0])
        except ValueError:
            continue
        for name in fields[1:]:
            found.setdefault(name.lower().rstrip("."), {})[address] = None
    return {name: tuple(sorted(addresses, key=lambda address: ":" in address)) for name, addresses in found.items()}


def _usable(lookup: Lookup, host: str) -> Lookup:
    """The look-up without the addresses that are never an upstream; without any other it has failed."""
    addresses = dict.fromkeys(map(canonical, lookup.addresses))
    refused = tuple((address, why) for address in addresses if (why := why_never(address)))
    if not refused:
        return lookup._replace(addresses=tuple(addresses))
    left = tuple(address for address in addresses if address not in dict(refused))
    error = "" if left else f"{host} is {refused[0][0]}, {refused[0][1]}: never an upstream"
    return lookup._replace(addresses=left, error=error, refused=refused)


class _Result(NamedTuple):
    """What there is of one candidate: addresses, or the reason why there are none."""

    addresses: tuple[str, ...]
    ttl: float = 0.0
    unanswered: str = ""
    error: str = ""
    failed: bool = False  # no answer, or a failure: not even that there is nothing


async def _search(resolver: dns.asyncresolver.Resolver, names: Sequence[str]) -> Lookup:
    """The first of the candidates that has addresses.

    One is asked for when those before it have none, or after a while beside them: at least half of LIFETIME is left for
    the last one. A later one's addresses count once all before it have none, or have had SECOND_ANSWER seconds more.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    end = begun + LIFETIME
    pause = min(NEXT_CANDIDATE, LIFETIME / 2 / max(1, len(names) - 1))
    waiting = deque(names)
    tasks: dict[str, asyncio.Task[_Result]] = {}
    patience: float | None = None  # until then earlier candidates are waited for, as there are addresses of a later one
    due = begun  # when the next candidate's turn is
    try:
        while True:
            now = loop.time()
            results = {name: task.result() for name, task in tasks.items() if task.done()}
            if patience is None and any(result.addresses for result in results.values()):
                patience = now + SECOND_ANSWER
            if _decided(tasks, results) or (patience is not None and now >= patience):
                break
            pending = [task for task in tasks.values() if not task.done()]
            more = bool(waiting) and patience is None
            if more and (not pending or now >= due):
                name = waiting.popleft()
                tasks[name] = loop.create_task(_ask_both(resolver, name, end - now))
                due = now + pause
                continue
            if not pending:
                break  # and nobody has addresses
            until = patience if patience is not None else due if more else None
            left = until - now if until is not None else None
            await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks.values():
            task.cancel()  # nothing happens to one that is done
    return _chosen(names, results)


def _decided(begun: Collection[str], results: dict[str, _Result]) -> bool:
    """Whether one candidate has addresses, and all before it have none."""
    for name in begun:
        if name not in results:
            return False
        if results[name].addresses:
            return True
    return False


def _chosen(names: Sequence[str], results: dict[str, _Result]) -> Lookup:
    """The look-up's result, from those of the candidates that there are."""
    failed: list[str] = []
    for name in names:
        result = results.get(name)
        if result is not None and result.addresses:
            return Lookup(result.addresses, "", result.ttl, result.unanswered, name, tuple(failed))
        if result is None or result.failed:
            failed.append(name)
    # The name itself is the last one, and what most people mean; one server's failure does not need the name before it.
    said = [
        f"{name}: {result.error}" if result.failed and len(names) > 1 else result.error
        for name in reversed(names)
        if (result := results.get(name)) is not None
    ]
    return Lookup((), _one_line("; ".join(said)))


async def _ask_both(resolver: dns.asyncresolver.Resolver, name: str, lifetime: float) -> _Result:
    """Ask for A and AAAA at the same time: a server that is slow or broken for one does not spoil the other."""
    loop = asyncio.get_running_loop()
    try:
        absolute = dns.name.from_text(f"{name}.")
    except dns.exception.DNSException as wrong:  # too long below a search domain, say
        return _Result((), error=_one_line(wrong), failed=True)
    tasks = {
        kind: loop.create_task(
            resolver.resolve(absolute, kind, search=False, raise_on_no_answer=False, lifetime=max(lifetime, 0.001))
        )
        for kind in ("A", "AAAA")
    }
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        found = any(task.exception() is None and task.result() for task in done)
        await asyncio.wait(tasks.values(), timeout=SECOND_ANSWER if found else None)
    finally:
        for task in tasks.values():
            task.cancel()
    answers: list[dns.resolver.Answer] = []
    failure, nothing, unanswered = "", "", ""
    for kind, task in tasks.items():
        error = task.exception() if task.done() else None
        if isinstance(error, dns.resolver.NXDOMAIN):
            nothing = nothing or _about(error.canonical_name, name, "does not exist")
        elif isinstance(error, dns.exception.DNSException | OSError):
            failure, unanswered = failure or _reason(error), kind
        elif error is not None:
            raise error
        elif not task.done():
            unanswered = kind
        elif task.result():
            answers.append(task.result())
        else:
            nothing = nothing or _about(task.result().canonical_name, name, "has no addresses")
    if not answers:
        return _Result((), error=failure or nothing, failed=bool(failure))
    # Aliases on the way count as well: a hub that fails over changes an alias, not an address.
    ttl = min(answer.chaining_result.minimum_ttl for answer in answers)
    return _Result(tuple(rdata.address for answer in answers for rdata in answer), ttl, unanswered)


def _about(found: dns.name.Name, name: str, what: str) -> str:
    """What is wrong with the name at the end of the aliases, which may be `name` itself."""
    text = found.to_text(omit_final_dot=True)
    return f"{text} {what}" + (f" (alias of {name})" if text.lower() != name.lower() else "")


class _NameServers(Nameserver):
    """All name servers as one, for dnspython: the first good answer counts, and who gave it is asked first next time.

    dnspython's own way is to give each server some seconds in turn. A dead one costs them at each look-up, one that
    needs a little longer is never heard, and the seconds are the wall clock's. Here the next server is asked beside the
    first after NEXT_SERVER seconds (the same once more if it is the only one: datagrams get lost), or at once when the
    first one fails, and all of them are listened to until the end.
    """

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self._order = list(dict.fromkeys(servers))  # in which they are asked
        self._servers = tuple(self._order)

    def __str__(self) -> str:
        return ", ".join(format_hostport(*server) for server in self._servers)

    def kind(self) -> str:
        return "Do53"

    def is_always_max_size(self) -> bool:
        return False

    def answer_nameserver(self) -> str:
        return str(self)

    def answer_port(self) -> int:
        return 0

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: object,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """The answer to `request`. Raises OSError, which is final for dnspython, with what became of each server."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        turns = deque(self._order)
        asked: dict[asyncio.Task[dns.message.Message | str], tuple[str, int]] = {}
        failures: dict[tuple[str, int], str] = {}  # of those that were asked
        try:
            while turns and (left := end - loop.time()) > 0:
                asked[loop.create_task(_ask(turns[0], request))] = turns[0]
                failures.setdefault(turns[0], f"no answer in the look-up's lifetime of {LIFETIME:g} s")
                turns.rotate(-1)
                done, _ = await asyncio.wait(asked, timeout=min(left, NEXT_SERVER), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    server, reply = asked.pop(task), task.result()
                    if not isinstance(reply, str):
                        self._order.remove(server)
                        self._order.insert(0, server)
                        return reply
                    failures[server] = reply
                    if server in turns:
                        turns.remove(server)
        finally:
            for task in asked:
                task.cancel()
        # In the order in which they are set down: the same failure has the same words each time.
        raise OSError(
            "; ".join(f"{format_hostport(*one)}: {failures[one]}" for one in self._servers if one in failures)
        )


async def _ask(server: tuple[str, int], request: dns.message.QueryMessage) -> dns.message.Message | str:
    """One query to one server, over TCP if its answer does not fit into a datagram; a string: how the server failed."""
    host, port = server
    try:
        reply, _over_tcp = await dns.asyncquery.udp_with_fallback(
            request, host, port=port, ignore_unexpected=True, ignore_errors=True
        )
    except (dns.exception.DNSException, EOFError, OSError) as error:
        return _one_line(error)
    rcode = reply.rcode()
    return reply if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN) else dns.rcode.to_text(rcode)


def _asking(resolver: dns.asyncresolver.Resolver, servers: Sequence[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    """`resolver`, its servers replaced."""
    resolver.nameservers = [_NameServers(servers)]
    resolver.timeout = LIFETIME  # of the one "server" that it sees
    return resolver


class _System(NamedTuple):
    """What a resolv.conf says, or the settings in its place."""

    resolver: dns.asyncresolver.Resolver
    search: SearchList


def _parse_system(text: str) -> _System | None:
    """What a resolv.conf(5) says; None if it names no server. Raises ValueError for what cannot be read."""
    made = dns.asyncresolver.Resolver(configure=False)
    try:
        made.read_resolv_conf(io.StringIO("".join(filter(_is_for_dnspython, text.splitlines(keepends=True)))))
    except dns.resolver.NoResolverConfiguration:
        return None
    except dns.exception.DNSException as error:
        raise ValueError(_one_line(error)) from error
    named = [server for server in made.nameservers if isinstance(server, str)]
    servers = [(server, DNS_PORT) for server in named if dns.inet.is_address(server)]
    if not servers:
        return None
    return _System(_asking(made, servers), search_list.parse(text, socket.gethostname()))


def _is_for_dnspython(line: str) -> bool:
    """Whether a line of resolv.conf(5) may be left to it: one that it does not take would spoil the rest.

    The search list is not its affair; a name server that is no address is passed over, as the C library does.
    """
    keyword, *values = line.split()[:2] or [""]
    if keyword == "nameserver":
        return bool(values) and dns.inet.is_address(values[0])
    return keyword not in ("search", "domain")


def _reason(error: Exception) -> str:
    """In words: where all servers failed, how each of them did, without what dnspython puts around it."""
    if isinstance(error, dns.resolver.NoNameservers) and (failures := error.kwargs.get("errors")):
        return _one_line(failures[-1][3])
    return _one_line(error)


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
