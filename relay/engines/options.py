"""Socket options: what the kernel is told about a connection before anybody looks at it.

Options set on a listening socket are inherited by what it accepts (Linux: tcp_create_openreq_child clones them), so
they cost nothing per connection on the client's side; towards the upstream they are set one by one.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from relay.engines.contract import TcpOptions

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn, 4096 by default since Linux 5.4

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
