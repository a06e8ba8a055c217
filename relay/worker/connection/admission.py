"""Admission: the access list, the rates and the limits decide whether a client's connection is let in.

This module only decides; it touches no socket.
"""

from __future__ import annotations

import enum
import hashlib
import socket
from functools import lru_cache
from typing import Protocol

from relay.address import Address
from relay.core.access_list import MAPPED, AccessList
from relay.core.limits import Lease, Limits, Refusal
from relay.core.rates import Rates
from relay.outcome import Outcome


class Customers(Protocol):
    """What admission asks of a worker's customers (`customers`)."""

    def may_use(self, slot: int, listener: int) -> bool: ...
    def admit(self, slot: int, listener: int, source: int) -> Lease | Refusal | Denied: ...


class Denied(enum.Enum):
    """Why a connection is refused before the limits are checked."""

    __hash__ = object.__hash__

    ACCESS = "access"
    SOURCE_RATE = "source_rate"
    ACCEPT_RATE = "accept_rate"
    CUSTOMER_RATE = "customer_rate"


REFUSAL_OUTCOMES: dict[Refusal | Denied, Outcome] = {
    Denied.ACCESS: Outcome.REFUSED_ACCESS,
    Denied.SOURCE_RATE: Outcome.REFUSED_SOURCE_RATE,
    Denied.ACCEPT_RATE: Outcome.REFUSED_ACCEPT_RATE,
    Refusal.CAPACITY: Outcome.REFUSED_CAPACITY,
    Refusal.INSTANCE: Outcome.REFUSED_INSTANCE,
    Refusal.LISTENER: Outcome.REFUSED_LISTENER,
    Refusal.SOURCE: Outcome.REFUSED_SOURCE,
    Denied.CUSTOMER_RATE: Outcome.REFUSED_CUSTOMER_RATE,
    Refusal.CUSTOMER: Outcome.REFUSED_CUSTOMER,
}


class SourceHash:
    """Hashes the network of an address to a 64-bit number, never 0.

    The hash is keyed (BLAKE2b, RFC 7693) with a secret of this instance, so that nobody can choose addresses that
    collide. `prefix_v4` and `prefix_v6` are the prefix lengths, in bits, of a network that counts as one source.
    """

    def __init__(self, key: bytes, prefix_v4: int, prefix_v6: int) -> None:
        self._key = key
        self._mask_v4 = _mask(32, prefix_v4)
        self._mask_v6 = _mask(128, prefix_v6)
        # Clients reconnect, and a refused one reconnects at once.
        self.cached = lru_cache(maxsize=4096)(self._hash)

    def _hash(self, host: str) -> int:
        address = pack(host)
        mask = self._mask_v4 if len(address) == 4 else self._mask_v6
        network = (int.from_bytes(address) & mask).to_bytes(len(address))
        return int.from_bytes(hashlib.blake2b(network, digest_size=8, key=self._key).digest()) or 1


def pack(host: str) -> bytes:
    """Pack a literal address into 4 or 16 bytes, without the interface that may follow a %.

    An IPv4-mapped IPv6 address becomes IPv4. Otherwise all IPv4 clients of a dual-stack socket or in PROXY headers
    would count as one source.
    """
    address = pack_mapped(host)
    return address[12:] if address.startswith(MAPPED) else address


def pack_mapped(host: str) -> bytes:
    """Pack a literal address but leave an IPv4-mapped one as IPv6: access lists tell the two apart."""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return socket.inet_pton(socket.AF_INET, host)


def _mask(bits: int, prefix: int) -> int:
    return ((1 << prefix) - 1) << (bits - prefix)


class Admission:
    """Decides for one worker whether a connection is let in.

    `access` is None if every client is allowed, `rates` if new connections are not rate-limited, `source_hash` if no
    limit is per source.
    """

    def __init__(
        self,
        limits: Limits,
        source_hash: SourceHash | None,
        access: AccessList | None = None,
        rates: Rates | None = None,
        denied: AccessList | None = None,
        *,
        only_customers: bool = False,
    ) -> None:
        """`denied` is the access list for customers, who need no entry in `access.allow`; None: all are allowed.

        `only_customers`: nobody else is admitted.
        """
        self._limits = limits
        self._denied = denied
        self._only_customers = only_customers
        self._source_hash = source_hash
        self._access = access
        self._rates = rates

    def with_access(self, access: AccessList | None, denied: AccessList | None, *, only_customers: bool) -> Admission:
        """The same limits, sources and rates behind other access lists."""
        return Admission(self._limits, self._source_hash, access, self._rates, denied, only_customers=only_customers)

    def admit(self, listener: int, client: Address) -> Lease | Refusal | Denied:
        """Return a lease for a connection from `client` to listener number `listener`, or why it is refused."""
        if self._access is not None and not self._access.allows(pack_mapped(client[0])):
            return Denied.ACCESS
        source = self._source_hash.cached(client[0]) if self._source_hash is not None else 0
        rates = self._rates
        if rates is not None:
            # The source's own bucket first: a source that hammers must not use up the instance's tokens.
            if rates.by_source and not rates.source(source):
                return Denied.SOURCE_RATE
            if not rates.accept():
                return Denied.ACCEPT_RATE
        return self._limits.acquire(listener, source)

    def admit_nobody(self, listener: int, client: Address) -> Lease | Refusal | Denied:
        """Like `admit`, where there are customers and `client` is none of them."""
        if self._only_customers:
            return Denied.ACCESS
        return self.admit(listener, client)

    def admit_customer(
        self, customers: Customers, customer: int, listener: int, client: Address
    ) -> Lease | Refusal | Denied:
        """Like `admit`, for a connection of the customer with that slot."""
        if not customers.may_use(customer, listener):
            return Denied.ACCESS
        if self._denied is not None and not self._denied.allows(pack_mapped(client[0])):
            return Denied.ACCESS
        source = self._source_hash.cached(client[0]) if self._source_hash is not None else 0
        rates = self._rates
        if rates is not None and rates.by_source and not rates.source(source):
            return Denied.SOURCE_RATE
        return customers.admit(customer, listener, source)

    def admit_unknown(self, listener: int) -> Lease | Refusal:
        """Return a lease for a connection whose client is named later, by its PROXY header, and is admitted then."""
        return self._limits.acquire(listener)
