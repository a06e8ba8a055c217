"""The records of one relayed connection: a `Link` with its two `Side`s. Plain data."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from relay.engines.contract import Handler
from relay.engines.link import CHANGED
from relay.engines.preread import PrereadBuffer

# Zero seconds of lingering: close(2) then sends RST, socket(7).
RESET_ON_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Side:
    """One of a connection's two sockets, with what is known of its direction: the bytes that come from it."""

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
        self.peer: Side | None = None  # None until both sides are there: then bytes flow
        # Bound methods, looked up once for all messages.
        self.recv_into: Callable[[bytearray, int, int], int] = sock.recv_into
        self.send: Callable[[bytes | memoryview, int], int] = sock.send
        self.received = 0  # bytes
        self.held: bytes | None = None  # received from the peer, not yet taken by this side
        self.readable = False  # an edge was seen that has not been read to its end
        self.queued = False  # has another turn coming
        self.ending = False  # FIN is in the kernel's queue: read until the end, a short read is not the last
        self.ended = False  # FIN read, or `dropping`: what comes later is not passed on
        self.dropping = False  # cut, or its peer is lost, and its FIN has not come: what comes is dropped
        self.finished = False  # FIN sent, or lost


class Link:
    """A connection as the engine sees it."""

    __slots__ = ("active", "client", "deadline", "handler", "preread", "seen", "settled", "upstream")

    def __init__(self, handler: Handler, client: socket.SocketType) -> None:
        self.handler = handler
        self.client = Side(self, client)
        self.upstream: Side | None = None
        self.settled: bool | None = None  # see `life.Link`
        self.preread: PrereadBuffer | None = None
        self.deadline = 0.0  # of the dial under way, monotonic seconds
        self.active = 0.0  # when a byte was last seen to have moved; 0: not pumping
        self.seen = CHANGED  # bytes received both ways when `active` was set
