"""A small name server on loopback for a whole relay: addresses, NXDOMAIN, or no answer at all."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers over UDP from `addresses` (name → IPv4 addresses); other names get NXDOMAIN.

    With `silent` no query is answered. `queries` has the names queried.
    """

    def __init__(self, addresses: dict[str, list[str]], *, ttl: int = 1, silent: bool = False) -> None:
        self.addresses = addresses
        self.silent = silent
        self.ttl = ttl
        self.queries: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._end = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address: tuple[str, int] = self._sock.getsockname()

    def table(self) -> str:
        """TOML that makes a relay use this server."""
        return f'[dns]\nnameservers = ["{self.address[0]}:{self.address[1]}"]\n'

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end = True
        self._sock.sendto(b"", self.address)
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        while True:
            packet, client = self._sock.recvfrom(4096)
            if self._end:
                return
            query = dns.message.from_wire(packet)
            self.queries.append(str(query.question[0].name))
            if not self.silent:
                self._sock.sendto(self._answer(query).to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        found = self.addresses.get(str(question.name).rstrip("."))
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "A", *found))
        return response
