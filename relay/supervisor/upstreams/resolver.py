"""The resolver: a single look-up of a host name, in /etc/hosts and then by DNS with dnspython.

`core.search_list` replaces dnspython's search list: each candidate is queried by its absolute name, and the first in
order that has addresses is the answer, with both families. A candidate that fails, or has no addresses, is skipped.
`name_cache` keeps answers, refreshes them ahead of time and serves stale ones.
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

LIFETIME = 5.0  # seconds that one look-up takes at most: all candidates, name servers and retries together
NEXT_SERVER = 1.0  # seconds without an answer after which the next name server is queried as well
# Seconds of waiting for the second family once the first has answered, and for an earlier candidate once a later one
# has addresses. Longer than NEXT_SERVER, so that one lost datagram costs neither a family nor a candidate's precedence.
SECOND_ANSWER = 1.5
NEXT_CANDIDATE = 1.5  # seconds without a result after which the next candidate is queried as well
DNS_PORT = 53
RESOLV_CONF = Path("/etc/resolv.conf")


class Lookup(NamedTuple):
    """The result of a look-up: literal addresses, IPv4 first; or no address and the reason of the failure."""

    addresses: tuple[str, ...]
    error: str = ""
    ttl: float = 0.0  # seconds: the least TTL of A, AAAA and the CNAMEs on the way; 0: hosts file
    unanswered: str = ""  # "A" or "AAAA": the query that failed or got no answer while the other one succeeded
    source: str = ""  # the absolute name (candidate) that has the addresses; "": the hosts file
    failed: tuple[str, ...] = ()  # candidates before `source` that failed or got no answer
    refused: tuple[tuple[str, str], ...] = ()  # addresses that are never dialled, each with the reason


class Resolver:
    """Look-ups for one process.

    `nameservers` are (address, port) pairs; without any, the name servers and the search list of /etc/resolv.conf are
    used. `complete` are the names that the settings write with a dot at the end: no search list for them. resolv.conf
    is read again when it has changed; a version without name servers is ignored, as it may be half written. Contents of
    the system's files are taken over from `before`, the resolver of an earlier configuration.
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
        self._resolv_conf: WatchedFile[_DnsConfig | None] | None = None
        self._config: _DnsConfig | None = None
        if nameservers:
            made = dns.asyncresolver.Resolver(configure=False)
            _set_servers(made, nameservers)
            self._config = _DnsConfig(made, SearchList())
        elif before is not None and before._resolv_conf is not None:
            self._resolv_conf, self._config = before._resolv_conf, before._config
        else:
            self._resolv_conf = WatchedFile(RESOLV_CONF, _parse_resolv_conf, None)

    async def resolve(self, host: str) -> Lookup:
        """Look the name up now, without a cache. A failure is in the result; nothing is raised for it.

        Takes LIFETIME seconds at most, plus the wait for files of a hung file system in the first look-ups.
        """
        hosts = await self._hosts.current()
        if addresses := hosts.get(host.lower().rstrip(".")):
            return _without_refused(Lookup(addresses), host)
        if self._resolv_conf is not None:
            self._config = await self._resolv_conf.current() or self._config
        if self._config is None:
            return Lookup((), f"no name servers: {RESOLV_CONF} names none")
        resolver, search = self._config
        name = f"{host}." if host in self.complete else host
        return _without_refused(await _query_candidates(resolver, search_list.candidates(name, search)), host)


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """The addresses of each name in a hosts(5) file, IPv4 first.

    Names match regardless of case and of a dot at the end: keys are in lower case, without the dot. Lines with an
    invalid address, or one with a zone id, are ignored.
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


def _without_refused(lookup: Lookup, host: str) -> Lookup:
    """The look-up without addresses that are never an upstream; a failure if no other address is left."""
    addresses = dict.fromkeys(map(canonical, lookup.addresses))
    refused = tuple((address, why) for address in addresses if (why := why_never(address)))
    if not refused:
        return lookup._replace(addresses=tuple(addresses))
    left = tuple(address for address in addresses if address not in dict(refused))
    error = "" if left else f"{host} is {refused[0][0]}, {refused[0][1]}: never an upstream"
    return lookup._replace(addresses=left, error=error, refused=refused)


class _CandidateResult(NamedTuple):
    """The result of one candidate: addresses, or the reason why there are none."""

    addresses: tuple[str, ...]
    ttl: float = 0.0
    unanswered: str = ""
    error: str = ""
    failed: bool = False  # no answer or a failure, as opposed to the answer that there are no addresses


async def _query_candidates(resolver: dns.asyncresolver.Resolver, names: Sequence[str]) -> Lookup:
    """The result of the first candidate that has addresses.

    A candidate is queried when those before it have no addresses, or in parallel with them after a pause; the pauses
    leave at least half of LIFETIME to the last candidate. A later candidate's addresses are taken once all before it
    have none, or have had SECOND_ANSWER seconds more.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    end = begun + LIFETIME
    pause = min(NEXT_CANDIDATE, LIFETIME / 2 / max(1, len(names) - 1))
    waiting = deque(names)
    tasks: dict[str, asyncio.Task[_CandidateResult]] = {}
    deadline: float | None = None  # for earlier candidates, once a later one has addresses
    due = begun  # when the next candidate is queried
    try:
        while True:
            now = loop.time()
            results = {name: task.result() for name, task in tasks.items() if task.done()}
            if deadline is None and any(result.addresses for result in results.values()):
                deadline = now + SECOND_ANSWER
            if _decided(tasks, results) or (deadline is not None and now >= deadline):
                break
            pending = [task for task in tasks.values() if not task.done()]
            more = bool(waiting) and deadline is None
            if more and (not pending or now >= due):
                name = waiting.popleft()
                tasks[name] = loop.create_task(_query_both(resolver, name, end - now))
                due = now + pause
                continue
            if not pending:
                break  # no candidate has addresses
            until = deadline if deadline is not None else due if more else None
            left = until - now if until is not None else None
            await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks.values():
            task.cancel()  # no effect on a task that is done
    return _chosen(names, results)


def _decided(begun: Collection[str], results: dict[str, _CandidateResult]) -> bool:
    """Whether a candidate has addresses and all before it have ended without."""
    for name in begun:
        if name not in results:
            return False
        if results[name].addresses:
            return True
    return False


def _chosen(names: Sequence[str], results: dict[str, _CandidateResult]) -> Lookup:
    """The look-up's result, from the results of those candidates that have ended."""
    failed: list[str] = []
    for name in names:
        result = results.get(name)
        if result is not None and result.addresses:
            return Lookup(result.addresses, "", result.ttl, result.unanswered, name, tuple(failed))
        if result is None or result.failed:
            failed.append(name)
    # The last candidate is the name itself, which is what operators look for, so its error comes first. With a single
    # candidate the name need not be repeated before a server's failure.
    errors = [
        f"{name}: {result.error}" if result.failed and len(names) > 1 else result.error
        for name in reversed(names)
        if (result := results.get(name)) is not None
    ]
    return Lookup((), _one_line("; ".join(errors)))


async def _query_both(resolver: dns.asyncresolver.Resolver, name: str, lifetime: float) -> _CandidateResult:
    """Query A and AAAA in parallel: a server that is slow or broken for one family does not spoil the other."""
    loop = asyncio.get_running_loop()
    try:
        absolute = dns.name.from_text(f"{name}.")
    except dns.exception.DNSException as wrong:  # such as a name that a search domain makes too long
        return _CandidateResult((), error=_one_line(wrong), failed=True)
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
            nothing = nothing or _no_addresses(error.canonical_name, name, "does not exist")
        elif isinstance(error, dns.exception.DNSException | OSError):
            failure, unanswered = failure or _error_text(error), kind
        elif error is not None:
            raise error
        elif not task.done():
            unanswered = kind
        elif task.result():
            answers.append(task.result())
        else:
            nothing = nothing or _no_addresses(task.result().canonical_name, name, "has no addresses")
    if not answers:
        return _CandidateResult((), error=failure or nothing, failed=bool(failure))
    # The TTLs of CNAMEs on the way count as well: a hub that fails over changes a CNAME, not an address.
    ttl = min(answer.chaining_result.minimum_ttl for answer in answers)
    return _CandidateResult(tuple(rdata.address for answer in answers for rdata in answer), ttl, unanswered)


def _no_addresses(found: dns.name.Name, name: str, what: str) -> str:
    """An error text about the name at the end of the CNAME chain, which may be `name` itself."""
    text = found.to_text(omit_final_dot=True)
    return f"{text} {what}" + (f" (alias of {name})" if text.lower() != name.lower() else "")


class _NameServers(Nameserver):
    """All name servers as one, for dnspython: the first good answer wins, and its server is queried first next time.

    dnspython itself gives each server some seconds in turn: a dead server costs them at each look-up, the answer of a
    slow one is never received, and the seconds are the wall clock's. Here the next server is queried in parallel after
    NEXT_SERVER seconds (a single server is queried again, as datagrams get lost), or at once when one fails, and each
    server's answer is accepted until the end.
    """

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self._order = list(dict.fromkeys(servers))  # the last good one first
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
        """The answer to `request`. Raises OSError, which dnspython does not retry, with the failure of each server."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        turns = deque(self._order)
        asked: dict[asyncio.Task[dns.message.Message | str], tuple[str, int]] = {}
        failures: dict[tuple[str, int], str] = {}  # of the servers queried so far
        try:
            while turns and (left := end - loop.time()) > 0:
                asked[loop.create_task(_query(turns[0], request))] = turns[0]
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
        # In the configured order, so that the same failure always has the same text.
        raise OSError(
            "; ".join(f"{format_hostport(*each)}: {failures[each]}" for each in self._servers if each in failures)
        )


async def _query(server: tuple[str, int], request: dns.message.QueryMessage) -> dns.message.Message | str:
    """Query one server, over TCP if the answer does not fit into a datagram. Returns the answer, or the error text."""
    host, port = server
    try:
        reply, _over_tcp = await dns.asyncquery.udp_with_fallback(
            request, host, port=port, ignore_unexpected=True, ignore_errors=True
        )
    except (dns.exception.DNSException, EOFError, OSError) as error:
        return _one_line(error)
    rcode = reply.rcode()
    return reply if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN) else dns.rcode.to_text(rcode)


def _set_servers(resolver: dns.asyncresolver.Resolver, servers: Sequence[tuple[str, int]]) -> None:
    """Make `resolver` query these servers in the way of `_NameServers`."""
    resolver.nameservers = [_NameServers(servers)]
    resolver.timeout = LIFETIME  # for the single server that dnspython sees


class _DnsConfig(NamedTuple):
    """Name servers and search list, from resolv.conf or from the settings."""

    resolver: dns.asyncresolver.Resolver
    search: SearchList


def _parse_resolv_conf(text: str) -> _DnsConfig | None:
    """The configuration in a resolv.conf(5); None if it names no server. Raises ValueError if it cannot be parsed."""
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
    _set_servers(made, servers)
    return _DnsConfig(made, search_list.parse(text, socket.gethostname()))


def _is_for_dnspython(line: str) -> bool:
    """Whether dnspython parses this line of resolv.conf(5). One line that it rejects would make it reject the file.

    The search list is parsed by `core.search_list`; a name server that is no address is ignored, as in the C library.
    """
    keyword, *values = line.split()[:2] or [""]
    if keyword == "nameserver":
        return bool(values) and dns.inet.is_address(values[0])
    return keyword not in ("search", "domain")


def _error_text(error: Exception) -> str:
    """The error text; if all servers failed, the failure of each one, without dnspython's words around it."""
    if isinstance(error, dns.resolver.NoNameservers) and (failures := error.kwargs.get("errors")):
        return _one_line(failures[-1][3])
    return _one_line(error)


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
