"""Open the stream engine's upstream sockets: non-blocking, bound and connecting; epoll reports the result."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from relay.engines.contract import Dial
from relay.engines.options import Option

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: choose the port at connect, when the whole 4-tuple is known


def start_dial(action: Dial, options: Sequence[Option]) -> socket.SocketType:
    """Return a non-blocking socket that is connecting to the action's address. Raises OSError if it cannot begin to."""
    address = action.address
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    # SocketType is the C type under socket.socket; the Python class around it costs more than the system call.
    sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        for option in options:
            sock.setsockopt(*option)
        if action.source:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((action.source, 0))
        number = sock.connect_ex(address)
        if number and number != errno.EINPROGRESS:
            raise OSError(number, "connect")
    except BaseException:
        sock.close()
        raise
    return sock


def pending_error(sock: socket.SocketType) -> int:
    """The socket's pending errno, 0 for none; reading it clears it (SO_ERROR, socket(7))."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
