"""How the stream engine moves bytes from one side of a connection to the other.

Edge-triggered epoll tells of news once, so each side is read until it has nothing left; a read that fills less than
the buffer was the last one (epoll(7), "Questions and answers", 9), unless the end of the stream was announced with it.
Bytes that the peer does not take are held, at most one buffer per direction, and the side is not read again until they
are gone: the kernel's window then closes towards the sender.

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
ROUNDS = 16  # buffers that one side may fill before the others get their turn

RECV_FLAGS = socket.MSG_DONTWAIT
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

End = Callable[[Link, Event, object], None]
Broken = Callable[[Link, bool, int], None]


class Pump:
    """Moves bytes; tells `end` when a connection is over, and `broken` when one of its sides is."""

    def __init__(self, end: End, broken: Broken, again: deque[Side], held_limit: int = 0) -> None:
        self._end = end
        self._broken = broken
        self._again = again  # sides that have more to read but used up their turn
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self.held = 0  # bytes, all connections together
        self._tight = held_limit - BUFFER if held_limit else sys.maxsize  # bytes held, from which on no more may be

    def start(self, link: Link, first: bytes) -> None:
        """Both sides are connected: let bytes flow, `first` towards the upstream before anything else."""
        client, upstream = link.client, link.upstream
        assert upstream is not None
        client.peer, upstream.peer = upstream, client
        if first:
            self._hold(upstream, first)
            self.flush(upstream)
        if client.ended and upstream.held is None:
            self._finish(client, upstream)  # it may end the connection: then neither side has a peer
        for side in (client, upstream):
            if side.readable and side.peer is not None:
                self.read(side)

    def read(self, side: Side) -> None:
        """Pass on what `side` has sent, as long as it has something and the peer takes it."""
        peer = side.peer
        if peer is None or peer.held is not None or side.ended:
            if side.dropping and peer is not None:
                self._drop(side, peer)
            else:
                side.readable = True
            return
        if self.held > self._tight:
            self._read_what_is_taken(side, peer)
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
                self._once_more(side)
                return

    def _read_what_is_taken(self, side: Side, peer: Side) -> None:
        """Too much is held: the bytes stay in the kernel until the peer has taken them. One buffer a turn."""
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
            side.recv_into(self._buffer, sent, RECV_FLAGS | socket.MSG_TRUNC)  # takes them off, tcp(7)
            side.received += sent
        side.readable = True
        if sent < size:
            peer.held = b""  # nothing, but it takes nothing now
        else:
            self._once_more(side)

    def flush(self, side: Side) -> None:
        """Give `side` what is held for it; once it has taken all, go on reading from its peer."""
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
            self._finish(peer, side)
        elif peer.readable:
            self.read(peer)

    def cut(self, side: Side) -> None:
        """Pass on what `side` has sent by now, as far as its peer takes it; then go on as if it had sent FIN."""
        if not side.ended:
            self.read(side)
        peer = side.peer
        if peer is None or side.ended:
            return
        side.ended = side.dropping = True
        if peer.held is None:
            self._finish(side, peer)
        if side.readable and side.peer is not None:
            self._once_more(side)

    def outlive(self, side: Side) -> None:
        """`side` is lost, and had sent FIN: read it to its end, and drop what its peer sends."""
        peer = side.peer
        assert peer is not None
        self.forget(side)
        side.finished = side.ending = True
        side.link.seen = CHANGED
        if not peer.ended:
            peer.ended = peer.dropping = True
        if peer.held is None:
            if side.ended:
                self._finish(side, peer)
            else:
                self.read(side)
        if peer.dropping and side.peer is not None:
            self._drop(peer, side)

    def _drop(self, side: Side, peer: Side) -> None:
        """Take what still comes from a side that was cut, or whose peer is lost.

        Not read, it would have the kernel close the socket with a reset; and an upstream that cannot get rid of what it
        sends might not read either.
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
                    self._finish(side, peer)
                return
        side.readable = True
        self._once_more(side)

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno (0 or None: hung up without one)."""
        self._broken(side.link, side is side.link.client, number or 0)

    def last(self, side: Side) -> bool:
        """One try to give `side` what is held for it, before it is closed; whether it has taken everything."""
        if side.held is None:
            return True
        try:
            return side.send(side.held, SEND_FLAGS) == len(side.held)
        except OSError:
            return False

    def forget(self, side: Side) -> None:
        """`side` is about to be closed: what was held for it is dropped."""
        if side.held is not None:
            self.held -= len(side.held)
            side.held = None

    def _once_more(self, side: Side) -> None:
        """It has more to read, after the others had their turn."""
        if not side.queued:
            side.queued = True
            self._again.append(side)

    def _hold(self, side: Side, data: bytes) -> None:
        side.held = data
        self.held += len(data)

    def _ended(self, side: Side, peer: Side) -> None:
        """`side` sent FIN, and all before it was passed on or is held."""
        side.ended = True
        side.link.seen = CHANGED  # the half-close timeout begins now
        self._finish(side, peer)

    def _finish(self, side: Side, peer: Side) -> None:
        """`side` has ended and its peer has taken everything: pass the FIN on; the second one ends it."""
        if peer.ended and side.held is None and not side.dropping and not peer.dropping:
            self._end(side.link, FINISHED, None)
            return
        if peer.finished:
            return
        peer.finished = True
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.broken(peer, pending_error(peer.sock) or error.errno)  # ENOTCONN, whatever the end was
