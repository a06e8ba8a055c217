"""Host names to addresses: a single look-up, with dnspython for DNS and /etc/hosts before it.

Keeping answers, refreshing them ahead of time and holding on to old ones are `relay.names`'s.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.inet
import dns.message
import dns.rcode
import dns.resolver
from dns.nameserver import Nameserver

from relay.address import format_hostport

logger = logging.getLogger("relay.resolve")

LIFETIME = 5.0  # seconds that one look-up may take, all name servers and retries together
NEXT_SERVER = 1.0  # seconds without an answer, after which the next name server is asked as well
# Seconds that one family's addresses are waited for once the other's are there: longer than NEXT_SERVER, so that a lost
# datagram does not cost a family.
SECOND_ANSWER = 1.5
RESOLV_CONF = Path("/etc/resolv.conf")


class Lookup(NamedTuple):
    """The result of a look-up: literal addresses, IPv4 first; none and the reason when it failed."""

    addresses: tuple[str, ...]
    error: str = ""
    ttl: float = 0.0  # seconds, as the answer has it: the least of A, AAAA and the aliases on the way; 0: hosts file
    unanswered: str = ""  # "A" or "AAAA" if that question got no answer, or a failure, while the other one did


class Resolver:
    """Look-ups for one process. `nameservers` are (address, port); none: those of /etc/resolv.conf.

    That file is read again whenever it has changed. One that names no server is as good as the one before it: it may be
    just being written.
    """

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]],
        hosts_file: Path = Path("/etc/hosts"),
    ) -> None:
        self._hosts_file = hosts_file
        self._from_system = not nameservers
        self._resolv_conf: tuple[int, ...] | None = ()  # state of the file as it was read; None: there is none
        self._resolver: dns.asyncresolver.Resolver | None = None
        if nameservers:
            self._resolver = _asking(dns.asyncresolver.Resolver(configure=False), nameservers)

    async def resolve(self, host: str) -> Lookup:
        """Ask now, whatever is known. Takes LIFETIME seconds at most; never raises for a name that has no answer."""
        if addresses := self._from_hosts_file(host):
            return Lookup(addresses)
        resolver = self._current()
        if resolver is None:
            return Lookup((), f"no name servers: {RESOLV_CONF} names none")
        try:
            answers, unanswered = await _query(resolver, host)
        except (dns.exception.DNSException, OSError) as error:
            return Lookup((), _reason(error))
        addresses = tuple(rdata.address for answer in answers for rdata in answer)
        if not addresses:
            return Lookup((), "the name has no addresses")
        # Aliases on the way count as well: a hub that fails over changes an alias, not an address.
        ttl = min(answer.chaining_result.minimum_ttl for answer in answers)
        return Lookup(addresses, "", ttl, unanswered)

    def _current(self) -> dns.asyncresolver.Resolver | None:
        if self._from_system:
            state = _file_state(RESOLV_CONF)  # before it is read: what changes meanwhile is read the next time
            if state != self._resolv_conf:
                self._resolv_conf = state
                made = _system_resolver()
                if made is not None:
                    named = [server for server in made.nameservers if isinstance(server, str)]
                    servers = [(server, made.port) for server in named if dns.inet.is_address(server)]
                    self._resolver = _asking(made, servers) or self._resolver
        return self._resolver

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


async def _query(resolver: dns.asyncresolver.Resolver, host: str) -> tuple[list[dns.resolver.Answer], str]:
    """Ask for A and AAAA at the same time: a server that is slow or broken for one does not spoil the other.

    Returns what has addresses, and which of the two questions got no answer. Raises what went wrong if there are none.
    """
    loop = asyncio.get_running_loop()
    tasks = {
        kind: loop.create_task(resolver.resolve(host, kind, search=True, raise_on_no_answer=False, lifetime=LIFETIME))
        for kind in ("A", "AAAA")
    }
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        found = any(task.exception() is None and task.result() for task in done)
        await asyncio.wait(tasks.values(), timeout=SECOND_ANSWER if found else None)
    finally:
        for task in tasks.values():
            task.cancel()  # nothing happens to one that is done
    answers: list[dns.resolver.Answer] = []
    errors: list[BaseException] = []
    unanswered = ""
    for kind, task in tasks.items():
        error = task.exception() if task.done() else None
        if not task.done() or (error is not None and not isinstance(error, dns.resolver.NXDOMAIN)):
            unanswered = kind
        if error is not None:
            errors.append(error)
        elif task.done() and task.result():
            answers.append(task.result())
    if errors and not answers:
        raise errors[0]
    return answers, unanswered


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


def _asking(
    resolver: dns.asyncresolver.Resolver, servers: Sequence[tuple[str, int]]
) -> dns.asyncresolver.Resolver | None:
    """`resolver`, its servers replaced; None if there are none."""
    resolver.nameservers = [_NameServers(servers)]
    resolver.timeout = LIFETIME  # of the one "server" that it sees
    return resolver if servers else None


def _system_resolver() -> dns.asyncresolver.Resolver | None:
    """What /etc/resolv.conf says; None if it names no server."""
    try:
        return dns.asyncresolver.Resolver(filename=str(RESOLV_CONF))
    except dns.resolver.NoResolverConfiguration:
        return None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        logger.warning("cannot use %s: %s", RESOLV_CONF, _one_line(error))
        return None


def _file_state(path: Path) -> tuple[int, ...] | None:
    """Differs once the file was written or replaced; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _reason(error: Exception) -> str:
    """In words: where all servers failed, how each of them did, without what dnspython puts around it."""
    if isinstance(error, dns.resolver.NoNameservers) and (failures := error.kwargs.get("errors")):
        return _one_line(failures[-1][3])
    return _one_line(error)


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
