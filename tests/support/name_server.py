"""A real DNS server on loopback, over UDP and TCP, with a zone and faults that the test defines."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from relay.supervisor.upstreams.resolver import Lookup, Resolver


class NameServer:
    """Answers from `zone`: (name, type) → (TTL, values), a CNAME with the records that it leads to, or a response code.

    A name that is not in the zone gets NXDOMAIN; other types of a name in the zone are empty. `asked` counts the
    queries by (name, type), `asked_over_tcp` those over TCP. The other attributes inject faults by (name, type):
    `silent` queries get no answer, `lost` is how many more datagrams are ignored, answers to `withheld` queries wait
    for `release`, and `truncated` ones get an empty answer with the TC flag over UDP.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.zone: dict[tuple[str, str], tuple[int, list[str]] | dns.rcode.Rcode] = {}
        self.silent: set[tuple[str, str]] = set()
        self.withheld: set[tuple[str, str]] = set()
        self.truncated: set[tuple[str, str]] = set()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.asked_over_tcp: Counter[tuple[str, str]] = Counter()
        self._waiting: list[tuple[bytes, tuple[str, int]]] = []
        self._lock = threading.Lock()  # for `withheld` and `_waiting`
        self._came = threading.Condition()  # notified at each query
        self._listener, self._sock = _same_port(host, port)
        self.address: tuple[str, int] = self._sock.getsockname()[:2]
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._sock.sendto(b"", self.address)  # an empty datagram ends the thread
        self._listener.shutdown(socket.SHUT_RDWR)  # on Linux this ends accept()
        for thread in self._threads:
            thread.join()
        self._sock.close()
        self._listener.close()

    def release(self) -> None:
        """Send the withheld answers, made from the zone at query time; further queries are answered at once."""
        with self._lock:
            self.withheld.clear()
            while self._waiting:
                self._sock.sendto(*self._waiting.pop(0))

    def wait_for(self, name: str, kind: str, times: int = 1) -> None:
        """Wait for a number of queries. Blocks: for `asyncio.to_thread`. Raises TimeoutError after 10 s."""
        with self._came:
            if not self._came.wait_for(lambda: self.asked[name, kind] >= times, 10):
                raise TimeoutError(f"{name} {kind} was asked {self.asked[name, kind]} times")

    def _serve(self) -> None:
        while True:
            data, client = self._sock.recvfrom(4096)
            if not data:
                return
            query, key = self._read(data)
            if key in self.silent:
                continue
            if self.lost[key]:
                self.lost[key] -= 1
                continue
            answer = self._answer(query, *key)
            if key in self.truncated:
                answer.answer.clear()
                answer.flags |= dns.flags.TC
            with self._lock:
                if key in self.withheld:
                    self._waiting.append((answer.to_wire(), client))
                else:
                    self._sock.sendto(answer.to_wire(), client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _client = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                (size,) = struct.unpack("!H", file.read(2))
                query, key = self._read(file.read(size))
                self.asked_over_tcp[key] += 1
                if key not in self.silent:
                    connection.sendall(self._answer(query, *key).to_wire(prepend_length=True))

    def _read(self, data: bytes) -> tuple[dns.message.Message, tuple[str, str]]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        key = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        with self._came:
            self.asked[key] += 1
            self._came.notify_all()
        return query, key

    def _answer(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        response.set_rcode(dns.rcode.NXDOMAIN)
        while any(known == name for known, _ in self.zone):
            response.set_rcode(dns.rcode.NOERROR)
            found = self.zone.get((name, kind))
            if isinstance(found, dns.rcode.Rcode):
                response.set_rcode(found)
                return response
            if found is not None:
                ttl, values = found
                response.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *values))
            alias = self.zone.get((name, "CNAME"))
            if found is not None or not isinstance(alias, tuple):
                return response
            ttl, (target,) = alias
            response.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "CNAME", f"{target}."))
            name = target
            response.set_rcode(dns.rcode.NXDOMAIN)  # RFC 2308 section 2.1: the code is about the last name of the chain
        return response


def _same_port(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A listening TCP socket and a UDP socket on the same port; for port 0, on a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind((host, port))
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            datagrams.bind(listener.getsockname())
        except OSError:  # taken by another process: try another port
            listener.close()
            datagrams.close()
            continue
        listener.listen()
        return listener, datagrams


HUB = "myhub.azure-devices.example"
PRIVATE = "myhub.privatelink.azure-devices.example"


async def answer(resolver: Resolver, host: str = HUB) -> Lookup:
    """The result of one look-up."""
    return await asyncio.wait_for(resolver.resolve(host), 10)
