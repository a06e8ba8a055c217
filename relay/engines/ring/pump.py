"""How the ring engine passes on what does not go straight through: the reactor's turn sends only the plain message.

A direction leaves the fast way when its peer does not take everything (what is left is held, and the side not read
until the peer has taken it), and when it proves to be bulk (read in large pieces, whenever a poll says that there is
something; see `bulk`). What is waited for on a side, `interest` decides.

How much is held: a receive gives at most GO buffers in one go, at most two goes come before it is cancelled, and a read
of bulk is at most READ bytes; all that is less than half of `contract.HELD_BOUND` for each direction. When all
connections together hold more than the limit, nothing more is taken from a socket than its peer has taken (MSG_PEEK
first).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from relay.engines.contract import HELD_BOUND
from relay.engines.link import CHANGED
from relay.engines.ring import abi, sockets
from relay.engines.ring.bulk import Bulk
from relay.engines.ring.half_close import End, HalfClose
from relay.engines.ring.interest import READABLE, Interest
from relay.engines.ring.reactor import BUFFER_MASK, LENGTH, SEND_WORD, VALUE, Reactor
from relay.engines.ring.records import ARMED, NO_SUBMISSION, Link, Side

GO = 33  # buffers that one multishot receive takes without a pause: MULTISHOT_MAX_RETRY + 1, io_uring/net.c
BUFFERS = 2048  # what one turn may bring, and the turn before has not given back
BUFFER = HELD_BOUND // (2 * 2 * GO) // 64 * 64  # bytes; two directions, two goes each, whole cache lines
FEWEST = 16  # buffers, however little may be held
BULK = 16  # messages of one turn, behind the first, that make a direction bulk

Broken = Callable[[Link, bool, int], None]


def buffer_count(held_limit: int) -> int:
    """How many buffers receives may fill in one turn: what they hold is at most half of `held_limit` (0: none).

    A power of two, as the kernel wants it. With fewer of them a crowd's messages take more turns.
    """
    count = BUFFERS
    while held_limit and count > FEWEST and 2 * count * BUFFER > held_limit:
        count //= 2
    return count


class Pump:
    """Moves bytes; tells `end` when a connection is over, and `broken` when one of its sides is."""

    def __init__(
        self,
        reactor: Reactor,
        interest: Interest,
        end: End,
        broken: Broken,
        held_limit: int,
        buffers: int,
    ) -> None:
        self._reactor = reactor
        self._broken = broken
        self._interest = interest
        self.watch = self._interest.watch
        self._buffers = reactor.provide(buffers, BUFFER)
        self._bulk = Bulk(interest, self)
        self._half_close = HalfClose(reactor, interest, self._bulk, end, self)
        self.cut = self._half_close.cut
        self.outlive = self._half_close.outlive
        self._turn = -1  # in which `_chunks` were counted
        self._chunks: dict[int, int] = {}  # messages of one turn that came behind its first, by slot
        self.held = 0  # bytes, all connections together
        # What one turn brings may all have to be held. No room at all: everything is read by hand, for ever.
        self._held_limit = max(0, held_limit - buffers * BUFFER) if held_limit else sys.maxsize
        self._interest.under_pressure = self._held_limit == 0

    def start(self, client: Side, upstream: Side, first: bytes) -> None:
        """Both sides are connected: let bytes flow, `first` towards the upstream before anything else."""
        client.peer, upstream.peer = upstream, client
        client.word, upstream.word = SEND_WORD | upstream.fd << abi.FD, SEND_WORD | client.fd << abi.FD
        client.sent = upstream.sent = -1
        if first and not self._give(client, upstream, first):
            return
        if client.ended and upstream.held is None:
            self._half_close.finish(client, upstream)
            if client.link is None:
                return
        self.watch(client)
        self.watch(upstream)

    def begin(self, client: Side, upstream: Side, first: bytes) -> None:
        """The same where both sides are read from now on and nothing is under way on them yet: nearly all."""
        client.peer, upstream.peer = upstream, client
        client.word, upstream.word = SEND_WORD | upstream.fd << 32, SEND_WORD | client.fd << 32  # FD
        client.sent = upstream.sent = -1
        if first:
            if not self._give(client, upstream, first):
                return
            if upstream.held is not None:  # the client is not
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
        """A receive told something that the reactor does not handle itself."""
        if not flags & abi.IORING_CQE_F_MORE:
            side.armed = 0
        if flags & abi.IORING_CQE_F_BUFFER:
            if not side.ended:
                side.received += result
                self._message(side, flags >> abi.IORING_CQE_BUFFER_SHIFT, result)
            if not side.armed and side.fd >= 0:
                # A receive of one message, or one that ended with it. More than fits is likely to go on.
                side.bulk = side.bulk or (self._interest.one_by_one and result == BUFFER)
                self.watch(side)
        elif result == 0:
            self.ended(side)
        elif -result in (errno.ECANCELED, errno.ENOBUFS, errno.EINTR, errno.EAGAIN):
            # ENOBUFS: all buffers are taken; those of the turn before go back at the end of this one.
            self.watch(side)
        else:
            self.broken(side, -result)

    def sent(self, user_data: int, result: int, side: Side, many: bool) -> None:
        """A send of what came from `side` failed or fell short: `result` is what went, or why nothing did."""
        side.short = False
        assert side.peer is not None
        if side.peer.broken:  # lost after its FIN, and the connection goes on: nothing is kept for it
            self._half_close.over_to_lost(side)
            return
        if result < 0 and result != -errno.EAGAIN:
            self.broken(side.peer, -result)
            return
        gone, size, view = max(result, 0), self._buffers.size, self._buffers.view
        if many:
            parts = self._reactor.sent_bursts[side.slot].buffers
        else:
            parts = [(user_data >> VALUE & BUFFER_MASK, user_data >> LENGTH)]
        data = b"".join([view[buffer * size : buffer * size + length] for buffer, length in parts])
        self.hold(side, data[gone:], front=True)

    def readable(self, side: Side, was: int, result: int) -> None:
        """A poll for what may come from `side` has ended."""
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
            return  # lost after its FIN: what it had said is read once there is room for it
        number = sockets.pending_error(side.fd)
        # HUP alone is good order where FIN was sent: the side's own FIN came too, perhaps behind bytes that wait for a
        # peer that is slow to take them. Without FIN sent it means a reset whose errno another call was told.
        if number or not side.finished:
            self.broken(side, number)

    def writable(self, side: Side) -> None:
        """`side` may take bytes again: give it what is held for it; once it has taken all, go on receiving."""
        source, held = side.peer, side.held
        if source is None or held is None:
            return
        try:
            size = sockets.send(side.fd, held) if held else 0
        except OSError as error:
            self.broken(side, error.errno)
            return
        assert side.link is not None
        side.link.seen = CHANGED  # a slow reader that takes something is not idle
        self.held -= size
        if size < len(held):
            side.held = held[size:]
            if size:
                self._interest.watch_out(side)
            else:
                self._interest.watch_out_by_epoll(side)
            return
        side.held = None
        self._relax()
        if source.ended:
            self._half_close.finish(source, side)
            return
        if not source.short:
            source.sent = -1
        self.watch(source)

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno (0 or None: hung up without one)."""
        side.broken = True
        assert side.link is not None
        self._broken(side.link, side is side.link.client, number or 0)

    # --- the way of the bytes -------------------------------------------------------------------------------------

    def _message(self, side: Side, buffer: int, size: int) -> None:
        reactor, peer = self._reactor, side.peer
        assert peer is not None
        if peer.held is None and side.sent < reactor.start:
            reactor.send(side, buffer, size)
            return
        if self._turn != reactor.turns:
            self._turn = reactor.turns
            self._chunks.clear()
        self._chunks[side.slot] = chunks = self._chunks.get(side.slot, 0) + 1
        if chunks == BULK:
            side.bulk = True
            self.watch(side)
        if peer.held is not None or not reactor.join(side, buffer, size):
            start = buffer * self._buffers.size
            self.hold(side, bytes(self._buffers.view[start : start + size]))

    def hold(self, side: Side, data: bytes, *, front: bool = False, stuck: bool = False) -> None:
        """Keep what came from `side` until its peer takes it; `front`: before what is kept already.

        `stuck`: the peer is known to take nothing now.
        """
        peer = side.peer
        assert peer is not None
        held = peer.held or b""
        peer.held = data + held if front else held + data
        self.held += len(data)
        side.sent = NO_SUBMISSION
        if self.held > self._held_limit and not self._interest.under_pressure:
            self._tighten()
        if stuck:
            self._interest.watch_out_by_epoll(peer)
        else:
            self._interest.watch_out(peer)
        self.watch(side)

    def _tighten(self) -> None:
        """Too much is held: every side is read with care from now on, until half of it is gone."""
        self._interest.under_pressure = True
        for side in self._reactor.sides:
            if side.peer is not None and side.armed:
                self.watch(side)

    def _relax(self) -> None:
        """Something that was held is gone."""
        if self._interest.under_pressure and self.held <= self._held_limit // 2 < self._held_limit:
            self._interest.under_pressure = False

    def _give(self, side: Side, peer: Side, data: bytes) -> bool:
        """Send bytes on that are in hand; what the peer does not take is held. False if the connection is over."""
        try:
            size = sockets.send(peer.fd, data)
        except OSError as error:
            self.broken(peer, error.errno)
            return False
        if size < len(data):
            self.hold(side, data[size:])
        return True

    def ended(self, side: Side) -> None:
        """`side` seems to have sent FIN; all before it was passed on or is held."""
        self._half_close.ended(side)

    def last(self, side: Side) -> bool:
        """One try to give `side` everything before it is closed; whether it has taken it."""
        source = side.peer
        if source is not None and not self._reactor.known(source):
            return False
        if side.held is None:
            return True
        try:
            return sockets.send(side.fd, side.held) == len(side.held)
        except OSError:
            return False

    def forget(self, side: Side) -> None:
        """`side` is about to be closed: what was held for it is dropped."""
        if side.held is not None:
            self.held -= len(side.held)
            side.held = None
            self._relax()
