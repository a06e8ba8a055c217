"""Checks whether an upstream's address is this relay's own: an address of this machine, with a port that it listens on.

Such an upstream would be a loop: each connection would open another one, starting with the first health check. A longer
loop, through another machine, another program or address translation, cannot be detected here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from relay.address import parse_hostport

OWN = "this relay's own address"

_ANY_PORT = 9  # discard; nothing is sent there


class Endpoint(NamedTuple):
    """An address and port that this relay listens on. `both`: an IPv6 socket that also accepts IPv4, ipv6(7)."""

    host: str
    port: int
    both: bool = False


def endpoint(sock: socket.socket) -> Endpoint:
    """The endpoint of a listening socket."""
    host, port = sock.getsockname()[:2]
    both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return Endpoint(host, port, both)


@lru_cache(maxsize=1024)
def written(text: str, *, both: bool = False) -> Endpoint:
    """The endpoint of a `bind` address, as it is written in the settings."""
    host, port = parse_hostport(text, allow_name=False)
    return Endpoint(host, port, both)


def is_own(host: str, port: int, endpoints: Iterable[Endpoint]) -> bool:
    """Whether a connection to this literal address would reach one of `endpoints`; those with port 0 do not count."""
    for listening in endpoints:
        if listening.port != port:
            continue
        if listening.host == host or (_covers(listening, host) and is_local(host)):
            return True
    return False


def is_certainly_own(host: str, port: int, endpoints: Iterable[Endpoint]) -> bool:
    """Like `is_own`, but independent of this machine: only the same address, or loopback and a wildcard, count."""
    return any(
        listening.port == port
        and (listening.host == host or (_covers(listening, host) and ip_address(host).is_loopback))
        for listening in endpoints
    )


def _covers(listening: Endpoint, host: str) -> bool:
    """Whether the endpoint is a wildcard that accepts connections to `host`, if that is an address of this machine."""
    if not ip_address(listening.host).is_unspecified:
        return False
    return listening.both or (":" in listening.host) == (":" in host)


def is_local(host: str) -> bool:
    """Whether a literal address is local to this machine, according to the kernel's routes.

    For a local destination the kernel chooses the same address as the source. connect(2) on a datagram socket sends
    nothing. bind(2) would prove nothing: with net.ipv4.ip_nonlocal_bind it accepts any address.
    """
    address = ip_address(host)
    if address.is_loopback:
        return True  # all of 127.0.0.0/8, whose source is 127.0.0.1
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, _ANY_PORT))
            return ip_address(sock.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False  # no route to it
