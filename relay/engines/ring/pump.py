"""Moves bytes in the cases that the reactor's turn leaves: the turn itself relays only plain messages, the fast way.

A direction leaves the fast way when its peer does not take everything (the rest is held, and the side not read until
the peer has taken it), and when it proves to be bulk (polled, and read in large pieces; see `bulk`). `interest` decides
what a side waits for.

Bytes held: a receive fills at most MULTISHOT_BUFFERS buffers without a pause, at most twice before it is cancelled, and
a read of bulk is at most READ_SIZE bytes; together less than half of `contract.HELD_BOUND` for each direction. When all
connections together hold more than the limit, which is memory pressure, no more is taken from a socket than its peer
has taken (MSG_PEEK first).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from relay.engines.contract import HELD_BOUND
from relay.engines.link import CHANGED
from relay.engines.ring import abi, sockets
from relay.engines.ring.bulk import Bulk
from relay.engines.ring.half_close import EndConnection, HalfClose
from relay.engines.ring.interest import READABLE, Interest
from relay.engines.ring.reactor import BUFFER_MASK, LENGTH_SHIFT, SEND_WORD, VALUE_SHIFT, Reactor
from relay.engines.ring.records import ARMED, NO_SUBMISSION, Link, Side

# Buffers that a multishot receive fills without a pause: MULTISHOT_MAX_RETRY + 1, io_uring/net.c.
MULTISHOT_BUFFERS = 33
BUFFERS = 2048  # for the messages of one turn and those of the turn before, which are not given back yet
# Bytes: two directions, each with two runs of a receive; whole cache lines.
BUFFER_SIZE = HELD_BOUND // (2 * 2 * MULTISHOT_BUFFERS) // 64 * 64
MIN_BUFFERS = 16  # however low the limit of held bytes is
BULK_MESSAGES = 16  # messages of one turn, after the first, that make a direction bulk

SideFailed = Callable[[Link, bool, int], None]


def buffer_count(held_limit: int) -> int:
    """The number of buffers for receives: together at most half of `held_limit` (0: no limit).

    A power of two, as the kernel requires. With fewer buffers the messages of many connections take more turns.
    """
    count = BUFFERS
    while held_limit and count > MIN_BUFFERS and 2 * count * BUFFER_SIZE > held_limit:
        count //= 2
    return count


class Pump:
    """Moves bytes; calls `end_connection` when a connection is over, and `side_failed` when one of its sides failed."""

    def __init__(
        self,
        reactor: Reactor,
        interest: Interest,
        end_connection: EndConnection,
        side_failed: SideFailed,
        held_limit: int,
        buffers: int,
    ) -> None:
        self._reactor = reactor
        self._side_failed = side_failed
        self._interest = interest
        self.watch = self._interest.watch
        self._buffers = reactor.provide(buffers, BUFFER_SIZE)
        self._bulk = Bulk(interest, self)
        self._half_close = HalfClose(reactor, interest, self._bulk, end_connection, self)
        self.cut = self._half_close.cut
        self.outlive = self._half_close.outlive
        self._turn = -1  # the turn in which `_messages` were counted
        self._messages: dict[int, int] = {}  # by slot: messages of one turn after its first
        self.held = 0  # bytes, all connections together
        # Everything that one turn brings may have to be held. With no room at all the pressure lasts for ever.
        self._held_limit = max(0, held_limit - buffers * BUFFER_SIZE) if held_limit else sys.maxsize
        self._interest.under_pressure = self._held_limit == 0

    def start(self, client: Side, upstream: Side, first: bytes) -> None:
        """Both sides are connected: let bytes flow, `first` towards the upstream before anything else."""
        client.peer, upstream.peer = upstream, client
        client.word, upstream.word = SEND_WORD | upstream.fd << abi.FD, SEND_WORD | client.fd << abi.FD
        client.sent = upstream.sent = -1
        if first and not self._send_first(client, upstream, first):
            return
        if client.ended and upstream.held is None:
            self._half_close.pass_fin(client, upstream)
            if client.link is None:
                return
        self.watch(client)
        self.watch(upstream)

    def start_new(self, client: Side, upstream: Side, first: bytes) -> None:
        """`start` for nearly all connections: nothing is under way on either side, and both are received from now."""
        client.peer, upstream.peer = upstream, client
        client.word, upstream.word = SEND_WORD | upstream.fd << 32, SEND_WORD | client.fd << 32  # FD
        client.sent = upstream.sent = -1
        if first:
            if not self._send_first(client, upstream, first):
                return
            if upstream.held is not None:  # the client is not received from yet
                self.watch(upstream)
                return
        client.armed = upstream.armed = ARMED
        client.busy += 1
        upstream.busy += 1
        receive = self._interest.receive
        self._reactor.push_pair(
            receive | client.fd << 32, 0, 0, client.slot, receive | upstream.fd << 32, upstream.slot
        )

    # --- completions ----------------------------------------------------------------------------------------------

    def received(self, side: Side, result: int, flags: int) -> None:
        """A completion of a receive that the reactor does not handle itself."""
        if not flags & abi.IORING_CQE_F_MORE:
            side.armed = 0
        if flags & abi.IORING_CQE_F_BUFFER:
            if not side.ended:
                side.received += result
                self._message(side, flags >> abi.IORING_CQE_BUFFER_SHIFT, result)
            if not side.armed and side.fd >= 0:
                # A receive of a single message, or a multishot one that ended with it. A full buffer suggests bulk.
                side.bulk = side.bulk or (self._interest.one_by_one and result == BUFFER_SIZE)
                self.watch(side)
        elif result == 0:
            self.ended(side)
        elif -result in (errno.ECANCELED, errno.ENOBUFS, errno.EINTR, errno.EAGAIN):
            # ENOBUFS: all buffers are in use; those of the turn before are given back at the end of this one.
            self.watch(side)
        else:
            self.broken(side, -result)

    def sent(self, user_data: int, result: int, side: Side, many: bool) -> None:
        """A send of bytes from `side` failed or fell short: `result` is the bytes sent, or the negated errno."""
        side.short = False
        assert side.peer is not None
        if side.peer.broken:  # lost after its FIN, and the connection goes on: nothing is held for it
            self._half_close.finish_to_lost(side)
            return
        if result < 0 and result != -errno.EAGAIN:
            self.broken(side.peer, -result)
            return
        taken, size, view = max(result, 0), self._buffers.size, self._buffers.view
        if many:
            parts = self._reactor.sent_batches[side.slot].buffers
        else:
            parts = [(user_data >> VALUE_SHIFT & BUFFER_MASK, user_data >> LENGTH_SHIFT)]
        data = b"".join([view[buffer * size : buffer * size + length] for buffer, length in parts])
        self.hold(side, data[taken:], front=True)

    def readable(self, side: Side, was: int, result: int) -> None:
        """The poll of `side` for bytes has completed; `was`: `Side.poll_in` before."""
        peer = side.peer
        if side.dropping:
            self._bulk.drop(side)
        elif result >= 0 and was == READABLE and peer is not None and peer.held is None and not side.short:
            self._bulk.read(side, peer)
        else:
            self.watch(side)

    def hung_up(self, side: Side) -> None:
        """An error or a hang-up on a side that is not read now."""
        if side.broken:
            return  # lost after its FIN: its last bytes are read once its peer takes them
        number = sockets.pending_error(side.fd)
        # HUP alone is in order where FIN was sent: the side's own FIN came too, perhaps behind bytes that wait for a
        # slow peer. Without FIN sent it means a reset whose errno another call has consumed.
        if number or not side.finished:
            self.broken(side, number)

    def writable(self, side: Side) -> None:
        """`side` may take bytes again: send what is held for it; once all is taken, receive from its peer again."""
        source, held = side.peer, side.held
        if source is None or held is None:
            return
        try:
            size = sockets.send(side.fd, held) if held else 0
        except OSError as error:
            self.broken(side, error.errno)
            return
        assert side.link is not None
        side.link.seen = CHANGED  # a slow reader that takes bytes is not idle
        self.held -= size
        if size < len(held):
            side.held = held[size:]
            if size:
                self._interest.watch_out(side)
            else:
                self._interest.watch_out_by_epoll(side)
            return
        side.held = None
        self._leave_pressure()
        if source.ended:
            self._half_close.pass_fin(source, side)
            return
        if not source.short:
            source.sent = -1
        self.watch(source)

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno (0 or None: hung up without one)."""
        side.broken = True
        assert side.link is not None
        self._side_failed(side.link, side is side.link.client, number or 0)

    # --- passing bytes on ------------------------------------------------------------------------------------------

    def _message(self, side: Side, buffer: int, size: int) -> None:
        reactor, peer = self._reactor, side.peer
        assert peer is not None
        if peer.held is None and side.sent < reactor.completed:
            reactor.send(side, buffer, size)
            return
        if self._turn != reactor.turns:
            self._turn = reactor.turns
            self._messages.clear()
        self._messages[side.slot] = count = self._messages.get(side.slot, 0) + 1
        if count == BULK_MESSAGES:
            side.bulk = True
            self.watch(side)
        if peer.held is not None or not reactor.add_to_send(side, buffer, size):
            start = buffer * self._buffers.size
            self.hold(side, bytes(self._buffers.view[start : start + size]))

    def hold(self, side: Side, data: bytes, *, front: bool = False, stuck: bool = False) -> None:
        """Hold bytes from `side` until its peer takes them; `front`: before the bytes held already.

        `stuck`: the peer is known to take nothing now.
        """
        peer = side.peer
        assert peer is not None
        held = peer.held or b""
        peer.held = data + held if front else held + data
        self.held += len(data)
        side.sent = NO_SUBMISSION
        if self.held > self._held_limit and not self._interest.under_pressure:
            self._enter_pressure()
        if stuck:
            self._interest.watch_out_by_epoll(peer)
        else:
            self._interest.watch_out(peer)
        self.watch(side)

    def _enter_pressure(self) -> None:
        """Too much is held: poll every side, until no more than half of the limit is held."""
        self._interest.under_pressure = True
        for side in self._reactor.sides:
            if side.peer is not None and side.armed:
                self.watch(side)

    def _leave_pressure(self) -> None:
        """Fewer bytes are held: end the pressure at half of the limit."""
        if self._interest.under_pressure and self.held <= self._held_limit // 2 < self._held_limit:
            self._interest.under_pressure = False

    def _send_first(self, side: Side, peer: Side, data: bytes) -> bool:
        """Send the first bytes of `side` to its peer; hold what it does not take. False if the connection is over."""
        try:
            size = sockets.send(peer.fd, data)
        except OSError as error:
            self.broken(peer, error.errno)
            return False
        if size < len(data):
            self.hold(side, data[size:])
        return True

    def ended(self, side: Side) -> None:
        """`side` seems to have sent FIN; all bytes before it were passed on or are held."""
        self._half_close.ended(side)

    def flush_held(self, side: Side) -> bool:
        """Try once to send `side` what is held for it before it is closed; whether it has taken everything."""
        source = side.peer
        if source is not None and not self._reactor.all_sent(source):
            return False
        if side.held is None:
            return True
        try:
            return sockets.send(side.fd, side.held) == len(side.held)
        except OSError:
            return False

    def drop_held(self, side: Side) -> None:
        """Drop the bytes held for `side`, which is about to be closed or is lost."""
        if side.held is not None:
            self.held -= len(side.held)
            side.held = None
            self._leave_pressure()
