"""Whether an upstream's address is this relay itself: an address of this machine, with a port that it listens on.

Such an upstream would be a loop: each connection leads to another one, and a health check is enough to begin it. What
cannot be seen from here is a longer loop, over another machine, another program, or a translation of addresses.
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
    """Where this relay listens. `both`: an IPv6 wildcard that takes IPv4 as well, ipv6(7)."""

    host: str
    port: int
    both: bool = False


def endpoint(sock: socket.socket) -> Endpoint:
    """That of a listening socket."""
    host, port = sock.getsockname()[:2]
    both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return Endpoint(host, port, both)


@lru_cache(maxsize=1024)
def written(text: str, *, both: bool = False) -> Endpoint:
    """That of an address to listen on, as it is written."""
    host, port = parse_hostport(text, allow_name=False)
    return Endpoint(host, port, both)


def is_own(host: str, port: int, endpoints: Iterable[Endpoint]) -> bool:
    """Whether a connection to this literal address would come to one of `endpoints` (those with port 0 are none)."""
    for one in endpoints:
        if one.port != port:
            continue
        if one.host == host or (_covers(one, host) and is_local(host)):
            return True
    return False


def is_certainly_own(host: str, port: int, endpoints: Iterable[Endpoint]) -> bool:
    """The same of what can be told without this machine: the same address, or loopback where a wildcard is bound."""
    return any(
        one.port == port and (one.host == host or (_covers(one, host) and ip_address(host).is_loopback))
        for one in endpoints
    )


def _covers(one: Endpoint, host: str) -> bool:
    """Whether the endpoint is a wildcard that takes connections to `host` where that is an address of this machine."""
    if not ip_address(one.host).is_unspecified:
        return False
    return one.both or (":" in one.host) == (":" in host)


def is_local(host: str) -> bool:
    """Whether a literal address is this machine's, as the kernel's routes have it.

    For a destination of its own the kernel chooses that same address as the source. (That bind(2) takes an address
    would say nothing: it takes any where net.ipv4.ip_nonlocal_bind is set.) A datagram socket's connect sends nothing.
    """
    address = ip_address(host)
    if address.is_loopback:
        return True  # all of 127.0.0.0/8, whose source is 127.0.0.1
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, _ANY_PORT))
            return ip_address(sock.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False  # no way there at all
