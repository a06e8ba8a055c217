"""Moves the stream engine's bytes from one side of a connection to the other.

Edge-triggered epoll reports new bytes once, so each side is read until it has nothing left. A read that does not fill
the buffer was the last one (epoll(7), "Questions and answers", 9), unless the end of the stream was announced with it.
Bytes that the peer does not take are held, at most one buffer per direction, and the side is not read again until they
are gone: the kernel's receive window then closes towards the sender.

Per message: one recv_into, one slice, one send, no allocation that outlives it.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Callable

from relay.engines.actions import FINISHED
from relay.engines.contract import Event
from relay.engines.link import CHANGED
from relay.engines.stream.dialer import pending_error
from relay.engines.stream.link import Link, Side

BUFFER = 65536  # bytes; the most that is held per direction
ROUNDS = 16  # reads of one side before the others get their turn

RECV_FLAGS = socket.MSG_DONTWAIT
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

End = Callable[[Link, Event, object], None]
Broken = Callable[[Link, bool, int], None]


class Pump:
    """Moves bytes. Calls `end` when both sides of a connection have ended, and `broken` when one of them fails."""

    def __init__(self, end: End, broken: Broken, read_queue: deque[Side], held_limit: int = 0) -> None:
        self._end = end
        self._broken = broken
        self._read_queue = read_queue  # sides that have more to read but used up their turn
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self.held = 0  # bytes, all connections together
        # With more bytes held than this, one more buffer would exceed the limit: memory pressure.
        self._pressure = held_limit - BUFFER if held_limit else sys.maxsize

    def start(self, link: Link, first: bytes) -> None:
        """Start pumping a connected pair, with `first` sent to the upstream before anything else."""
        client, upstream = link.client, link.upstream
        assert upstream is not None
        client.peer, upstream.peer = upstream, client
        if first:
            self._hold(upstream, first)
            self.flush(upstream)
        if client.ended and upstream.held is None:
            self._pass_fin(client, upstream)  # may end the connection: then neither side has a peer
        for side in (client, upstream):
            if side.readable and side.peer is not None:
                self.read(side)

    def read(self, side: Side) -> None:
        """Read `side` and send to its peer, until nothing is left or the peer takes no more."""
        peer = side.peer
        if peer is None or peer.held is not None or side.ended:
            if side.dropping and peer is not None:
                self._drop(side, peer)
            else:
                side.readable = True
            return
        if self.held > self._pressure:
            self._read_under_pressure(side, peer)
            return
        turn = 0
        while True:
            try:
                size = side.recv_into(self._buffer, BUFFER, RECV_FLAGS)
                if not size:
                    self._ended(side, peer)
                    return
            except BlockingIOError:
                side.readable = False
                return
            except OSError as error:
                self.broken(side, error.errno)
                return
            side.received += size
            try:
                sent = peer.send(self._view[:size], SEND_FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.broken(peer, error.errno)
                return
            if sent < size:
                self._hold(peer, bytes(self._view[sent:size]))
                side.readable = True
                return
            if size < BUFFER and not side.ending:
                side.readable = False
                return
            turn += 1
            if turn == ROUNDS:
                side.readable = True
                self._requeue(side)
                return

    def _read_under_pressure(self, side: Side, peer: Side) -> None:
        """Under memory pressure, leave bytes in the kernel until the peer has taken them. One buffer a turn."""
        try:
            size = side.recv_into(self._buffer, BUFFER, RECV_FLAGS | socket.MSG_PEEK)
        except BlockingIOError:
            side.readable = False
            return
        except OSError as error:
            self.broken(side, error.errno)
            return
        if not size:
            self._ended(side, peer)
            return
        try:
            sent = peer.send(self._view[:size], SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.broken(peer, error.errno)
            return
        if sent:
            side.recv_into(self._buffer, sent, RECV_FLAGS | socket.MSG_TRUNC)  # discards what was sent, tcp(7)
            side.received += sent
        side.readable = True
        if sent < size:
            peer.held = b""  # nothing is held, but the peer is full
        else:
            self._requeue(side)

    def flush(self, side: Side) -> None:
        """Send `side` what is held for it; once it has taken everything, go on reading from its peer."""
        held = side.held
        peer = side.peer
        if held is None or peer is None:
            return
        try:
            sent = side.send(held, SEND_FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self.broken(side, error.errno)
            return
        side.link.seen = CHANGED  # a slow reader that takes something is not idle
        self.held -= sent
        if sent < len(held):
            side.held = held[sent:]
            return
        side.held = None
        if peer.ended:
            self._pass_fin(peer, side)
        elif peer.readable:
            self.read(peer)

    def cut(self, side: Side) -> None:
        """Pass on what `side` has sent by now, as far as its peer takes it; then treat it as if it had sent FIN."""
        if not side.ended:
            self.read(side)
        peer = side.peer
        if peer is None or side.ended:
            return
        side.ended = side.dropping = True
        if peer.held is None:
            self._pass_fin(side, peer)
        if side.readable and side.peer is not None:
            self._requeue(side)

    def outlive(self, side: Side) -> None:
        """Begin a lingering close: `side` is lost and had sent FIN. Read up to it, and drop what its peer sends."""
        peer = side.peer
        assert peer is not None
        self.forget(side)
        side.finished = side.ending = True
        side.link.seen = CHANGED
        if not peer.ended:
            peer.ended = peer.dropping = True
        if peer.held is None:
            if side.ended:
                self._pass_fin(side, peer)
            else:
                self.read(side)
        if peer.dropping and side.peer is not None:
            self._drop(peer, side)

    def _drop(self, side: Side, peer: Side) -> None:
        """Read and drop what a `dropping` side sends.

        If it were left unread, the kernel would close the socket with a reset; and an upstream that cannot send might
        not read either.
        """
        for _ in range(ROUNDS):
            try:
                size = side.recv_into(self._buffer, BUFFER, RECV_FLAGS | socket.MSG_TRUNC)
            except BlockingIOError:
                side.readable = False
                return
            except OSError as error:
                self.broken(side, error.errno)
                return
            if not size:
                side.dropping = False
                if peer.held is None:
                    self._pass_fin(side, peer)
                return
        side.readable = True
        self._requeue(side)

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with errno `number` (0 or None: hung up without one)."""
        self._broken(side.link, side is side.link.client, number or 0)

    def flush_last(self, side: Side) -> bool:
        """Try once to send what is held for `side`, before it is closed; True if it has taken everything."""
        if side.held is None:
            return True
        try:
            return side.send(side.held, SEND_FLAGS) == len(side.held)
        except OSError:
            return False

    def forget(self, side: Side) -> None:
        """Drop what is held for `side`, which is about to be closed or is lost."""
        if side.held is not None:
            self.held -= len(side.held)
            side.held = None

    def _requeue(self, side: Side) -> None:
        """Put `side` into the read queue: it has more to read, after the others had their turn."""
        if not side.queued:
            side.queued = True
            self._read_queue.append(side)

    def _hold(self, side: Side, data: bytes) -> None:
        side.held = data
        self.held += len(data)

    def _ended(self, side: Side, peer: Side) -> None:
        """FIN of `side` was read, and all bytes before it were passed on or are held."""
        side.ended = True
        side.link.seen = CHANGED  # the half-close timeout begins now
        self._pass_fin(side, peer)

    def _pass_fin(self, side: Side, peer: Side) -> None:
        """Pass on the FIN of `side`, once its peer has taken everything; the second FIN ends the connection."""
        if peer.ended and side.held is None and not side.dropping and not peer.dropping:
            self._end(side.link, FINISHED, None)
            return
        if peer.finished:
            return
        peer.finished = True
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.broken(peer, pending_error(peer.sock) or error.errno)  # shutdown says ENOTCONN, whatever the cause
