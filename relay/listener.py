"""Listening sockets of the workers, bound by the supervisor."""

from __future__ import annotations

import socket

from relay.engines.contract import TcpOptions
from relay.engines.options import BACKLOG, set_inherited


def bind_listener(host: str, port: int, tcp: TcpOptions, *, claim: bool = False, listen: bool = True) -> socket.socket:
    """A listening, non-blocking socket that shares its port with those of the other workers (SO_REUSEPORT).

    `host` is a literal address; port 0: a free one. With `claim`, nobody else may listen there yet, another relay
    included. Without `listen` the socket is only bound, so that no client can come to it. Raises OSError if it cannot
    be had.

    SO_REUSEPORT alone would let two relays of the same user share a port, each with half of the connections. A claim
    gets that option only when it listens: until then the kernel refuses bind(2) or listen(2) to everybody else's
    socket, and afterwards to every other claim (inet_csk_bind_conflict, net/ipv4/inet_connection_sock.c). So of two
    relays that start at the same moment one gets the port, and it never lets go of it. The sockets that share it later
    take the claim into their group (reuseport_add_sock, net/core/sock_reuseport.c), so it is one like the others.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not claim:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # [::] must not take 0.0.0.0's port as well, and every client has an address of its own family.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_inherited(sock, tcp)
        sock.bind((host, port))
        if listen:
            sock.listen(BACKLOG)
        if claim:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock
