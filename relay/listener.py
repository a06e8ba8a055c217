"""Listening sockets and socket options: what the kernel is told about a connection before anybody looks at it.

Options set on a listening socket are inherited by what it accepts (Linux: tcp_create_openreq_child clones them), so
they cost nothing per connection on the client's side; towards the upstream they are set one by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from typing import NamedTuple

from relay.engines.contract import TcpOptions

# accept(2) errors that mean the machine is short of something: the connection stays in the queue, and asking again at
# once would spin. (Other errors concern the one connection that died in the queue.)
ACCEPT_CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn, 4096 by default since Linux 5.4

# A socket filter, linux/filter.h: classic BPF, run on each segment for the listener from its TCP header on. Those that
# only have SYN of SYN and ACK are dropped: whoever begins to connect is not answered, and nobody else is disturbed.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SYN, _SYN_ACK = 0x02, 0x12
_FILTER = (
    (0x30, 0, 0, 13),  # BPF_LD | BPF_B | BPF_ABS: the flags
    (0x54, 0, 0, _SYN_ACK),  # BPF_ALU | BPF_AND
    (0x15, 0, 1, _SYN),  # BPF_JMP | BPF_JEQ: the next one if equal, else the one after it
    (0x06, 0, 0, 0),  # BPF_RET: nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # BPF_RET: all of it
)

Option = tuple[int, int, int]

NODELAY: Option = (int(socket.IPPROTO_TCP), socket.TCP_NODELAY, 1)  # int: an IntEnum is slower to pass on
KEEPALIVE: Option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tcp_options(tcp: TcpOptions) -> tuple[Option, ...]:
    """The setsockopt arguments for every connection, on either side; `user_timeout` is none (see `engines.lost`)."""
    options: list[Option] = [NODELAY]
    if tcp.keepalive_idle:
        options.append(KEEPALIVE)
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tcp.keepalive_idle))
        if tcp.keepalive_interval:
            options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tcp.keepalive_interval))
        if tcp.keepalive_count:
            options.append((socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tcp.keepalive_count))
    return tuple(options)


class EngineOptions(NamedTuple):
    """What an engine sets itself, and when. A client's side inherits the rest from its listener."""

    upstream_first: tuple[Option, ...]  # before a dial: what matters from the first byte on
    upstream_later: tuple[Option, ...]  # once a connection has lived for a while: how long to bear with a silent peer
    client_later: tuple[Option, ...]


def engine_options(tcp: TcpOptions) -> EngineOptions:
    """The options of each side by the time when they are set: most short connections end before the later ones."""
    options = tcp_options(tcp)
    first = tuple(option for option in options if option[:2] == NODELAY[:2])
    return EngineOptions(
        first,
        tuple(option for option in options if option not in first),
        tuple(option for option in options if option == KEEPALIVE),
    )


def set_inherited(sock: socket.socket, tcp: TcpOptions) -> None:
    """Set what connections take from the socket that accepts them. Raises OSError."""
    for option in tcp_options(tcp):
        # Keepalive itself would start a timer with each connection: engines set it on those that live on.
        if option != KEEPALIVE:
            sock.setsockopt(*option)


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


def answer_no_more(sock: socket.socket) -> bool:
    """Whoever begins to connect there from now on is not answered, whoever has begun can still come in.

    That holds for every copy of the listening socket. (The sockets that are accepted inherit the filter, which drops
    nothing that belongs to a connection.) False: the kernel does not do it, and all is as before.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(buffer)))
    except OSError:
        return False
    return True


def answer_again(sock: socket.socket) -> None:
    """Whoever begins to connect there is answered again, and has a queue of full length to wait in."""
    with contextlib.suppress(OSError):  # ENOENT: there was no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    sock.listen(BACKLOG)
