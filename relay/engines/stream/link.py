"""The stream engine's records of one connection: a `Link` with its two `Side`s. Plain data."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from relay.engines.contract import Handler
from relay.engines.link import CHANGED
from relay.engines.preread import PrereadBuffer

# SO_LINGER with zero seconds: close(2) then sends RST, socket(7).
RESET_ON_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Side:
    """One of a connection's two sockets, and the state of its direction: the bytes received from it."""

    __slots__ = (
        "dropping",
        "ended",
        "ending",
        "fd",
        "finished",
        "held",
        "link",
        "peer",
        "queued",
        "readable",
        "received",
        "recv_into",
        "send",
        "sock",
    )

    def __init__(self, link: Link, sock: socket.SocketType) -> None:
        self.link = link
        self.sock = sock
        self.fd = sock.fileno()
        self.peer: Side | None = None  # the other side, once both are connected and the connection pumps
        # Bound methods, looked up once instead of for each message.
        self.recv_into: Callable[[bytearray, int, int], int] = sock.recv_into
        self.send: Callable[[bytes | memoryview, int], int] = sock.send
        self.received = 0  # bytes
        self.held: bytes | None = None  # received from the peer, not taken yet; b"": nothing, but this side is full
        self.readable = False  # epoll reported bytes that may not have been read to the last one
        self.queued = False  # is in the read queue
        self.ending = False  # FIN is in the kernel's queue: read up to it, even after a short read
        self.ended = False  # FIN was read, or `dropping`: what comes later is not passed on
        self.dropping = False  # its FIN has not come, but it was cut, or its peer is lost: what it sends is dropped
        self.finished = False  # FIN was sent to it, or it is lost


class Link:
    """A connection as the engine sees it."""

    __slots__ = ("active", "client", "deadline", "handler", "preread", "seen", "settled", "upstream")

    def __init__(self, handler: Handler, client: socket.SocketType) -> None:
        self.handler = handler
        self.client = Side(self, client)
        self.upstream: Side | None = None
        self.settled: bool | None = None  # see `engines.link.Link`
        self.preread: PrereadBuffer | None = None
        self.deadline = 0.0  # monotonic seconds, of the dial or preread under way
        self.active = 0.0  # monotonic seconds when activity was last seen; 0: not pumping
        self.seen = CHANGED  # bytes received from both sides when `active` was set
