"""A real DNS server on a loopback UDP socket, with a zone that a test writes down."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers from `zone`: (name, type) → (TTL, values), a CNAME with the records that it leads to, or a response code.

    A name of which nothing is known does not exist; of a name that exists, other types are empty. `asked` counts the
    questions. `silent` names get no answer at all.
    """

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], tuple[int, list[str]] | dns.rcode.Rcode] = {}
        self.silent: set[tuple[str, str]] = set()
        self.asked: Counter[tuple[str, str]] = Counter()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._sock.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._sock.sendto(b"", self.address)  # a datagram without a question: the end
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            data, client = self._sock.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            question = query.question[0]
            key = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
            self.asked[key] += 1
            if key not in self.silent:
                self._sock.sendto(self._answer(query, *key).to_wire(), client)

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
        return response
