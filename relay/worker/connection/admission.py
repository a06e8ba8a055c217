"""Who gets in: asks the access list, turns a client's address into a source, asks the rates and the limits.

Decides; touches no socket.
"""

from __future__ import annotations

import enum
import hashlib
import socket
from functools import lru_cache

from relay.address import Address
from relay.core.access_list import MAPPED, AccessList
from relay.core.limits import Lease, Limits, Refusal
from relay.core.rates import Rates
from relay.outcome import Outcome


class Denied(enum.Enum):
    """Refused before the limits are asked."""

    __hash__ = object.__hash__

    ACCESS = "access"
    SOURCE_RATE = "source_rate"
    ACCEPT_RATE = "accept_rate"


REFUSAL_OUTCOMES: dict[Refusal | Denied, Outcome] = {
    Denied.ACCESS: Outcome.REFUSED_ACCESS,
    Denied.SOURCE_RATE: Outcome.REFUSED_SOURCE_RATE,
    Denied.ACCEPT_RATE: Outcome.REFUSED_ACCEPT_RATE,
    Refusal.CAPACITY: Outcome.REFUSED_CAPACITY,
    Refusal.INSTANCE: Outcome.REFUSED_INSTANCE,
    Refusal.LISTENER: Outcome.REFUSED_LISTENER,
    Refusal.SOURCE: Outcome.REFUSED_SOURCE,
}


class SourceHash:
    """Maps an address to a 64-bit number for its network, never 0.

    Keyed (BLAKE2b, RFC 7693) with a secret of this instance, so that nobody can choose addresses that share a number.
    `prefix_v4` and `prefix_v6` are the lengths in bits of what counts as one source.
    """

    def __init__(self, key: bytes, prefix_v4: int, prefix_v6: int) -> None:
        self._key = key
        self._mask_v4 = _mask(32, prefix_v4)
        self._mask_v6 = _mask(128, prefix_v6)
        # Clients come back, and one that is refused comes back at once.
        self.cached = lru_cache(maxsize=4096)(self._hash)

    def _hash(self, host: str) -> int:
        address = pack(host)
        mask = self._mask_v4 if len(address) == 4 else self._mask_v6
        network = (int.from_bytes(address) & mask).to_bytes(len(address))
        return int.from_bytes(hashlib.blake2b(network, digest_size=8, key=self._key).digest()) or 1


def pack(host: str) -> bytes:
    """A literal address as bytes, 4 or 16. An interface behind a % is no part of the address.

    An IPv4 address written as IPv6 is what it is: on a socket for both families, or in a PROXY header, all of them
    would be one source.
    """
    address = _as_it_came(host)
    return address[12:] if address.startswith(MAPPED) else address


def _as_it_came(host: str) -> bytes:
    """The same, and an IPv4 address written as IPv6 stays so: access lists tell them apart."""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return socket.inet_pton(socket.AF_INET, host)


def _mask(bits: int, prefix: int) -> int:
    return ((1 << prefix) - 1) << (bits - prefix)


class Admission:
    """Decides for one worker whether a connection gets in.

    `access` is None where everybody is let in, `rates` where new connections come as they like, `source_hash` where
    sources are not told from one another.
    """

    def __init__(
        self,
        limits: Limits,
        source_hash: SourceHash | None,
        access: AccessList | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._limits = limits
        self._source_hash = source_hash
        self._access = access
        self._rates = rates

    def admit(self, listener: int, client: Address) -> Lease | Refusal | Denied:
        """A lease for a connection of listener number `listener` from `client`, or what is in the way."""
        if self._access is not None and not self._access.allows(_as_it_came(client[0])):
            return Denied.ACCESS
        source = self._source_hash.cached(client[0]) if self._source_hash is not None else 0
        rates = self._rates
        if rates is not None:
            # The source's first: one that hammers does not use up the instance's tokens.
            if rates.by_source and not rates.source(source):
                return Denied.SOURCE_RATE
            if not rates.accept():
                return Denied.ACCEPT_RATE
        return self._limits.acquire(listener, source)

    def admit_unknown(self, listener: int) -> Lease | Refusal:
        """A lease for a connection whose client is not known yet: it will say so first, and be admitted then."""
        return self._limits.acquire(listener)
