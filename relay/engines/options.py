"""Socket options of both sides, and when each is set.

Options set on a listening socket are inherited by the sockets accepted from it (Linux: tcp_create_openreq_child clones
them), so on the client's side they cost nothing per connection; upstream sockets get them one by one.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from relay.engines.contract import TcpOptions

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn, 4096 by default since Linux 5.4

Option = tuple[int, int, int]

NODELAY: Option = (int(socket.IPPROTO_TCP), socket.TCP_NODELAY, 1)  # int: an IntEnum is slower to pass on

KEEPALIVE: Option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def socket_options(tcp: TcpOptions) -> tuple[Option, ...]:
    """The setsockopt arguments for either side of a connection.

    `user_timeout` is not among them: the engine implements it, see `engines.unresponsive`.
    """
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
    """The options that an engine sets itself, by when. A client's side inherits the others from its listener."""

    upstream_first: tuple[Option, ...]  # before the dial: they matter from the first byte on
    upstream_later: tuple[Option, ...]  # once a connection has lived for a tick: keepalive and its times
    client_later: tuple[Option, ...]


def engine_options(tcp: TcpOptions) -> EngineOptions:
    """Split the options by when they are set: most short connections end before the later ones are needed."""
    options = socket_options(tcp)
    first = tuple(option for option in options if option[:2] == NODELAY[:2])
    return EngineOptions(
        first,
        tuple(option for option in options if option not in first),
        tuple(option for option in options if option == KEEPALIVE),
    )


def set_inherited(sock: socket.socket, tcp: TcpOptions) -> None:
    """Set the options that connections inherit on their listening socket. Raises OSError."""
    for option in socket_options(tcp):
        # Keepalive itself would start a timer with each connection: engines set it once a connection has lived a tick.
        if option != KEEPALIVE:
            sock.setsockopt(*option)
