"""Half-close in the ring engine: a side's FIN is passed on once its peer has taken all bytes before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relay.engines.actions import FINISHED
from relay.engines.contract import Event
from relay.engines.link import CHANGED
from relay.engines.ring import sockets
from relay.engines.ring.bulk import Bulk
from relay.engines.ring.interest import Interest
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.records import NO_SUBMISSION, Link, Side
from relay.engines.tcp_state import fin_received

EndConnection = Callable[[Link, Event, object], None]


class Pump(Protocol):
    """What half-close needs of the pump."""

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with an errno."""

    def hold(self, side: Side, data: bytes) -> None:
        """Hold bytes from `side` until its peer is writable."""

    def drop_held(self, side: Side) -> None:
        """Drop the bytes held for `side`."""


class HalfClose:
    """Passes FINs on; calls `end_connection` when both directions have ended, and the pump when a side is broken."""

    def __init__(
        self,
        reactor: Reactor,
        interest: Interest,
        bulk: Bulk,
        end_connection: EndConnection,
        pump: Pump,
    ) -> None:
        self._all_sent = reactor.all_sent
        self._pump = pump
        self._watch = interest.watch
        self._bulk = bulk
        self._end_connection = end_connection
        self._broken = pump.broken

    def ended(self, side: Side) -> None:
        """`side` seems to have sent FIN; all bytes before it were passed on or are held."""
        if not side.finished and sockets.is_closed(side.fd) and not fin_received(side.fd, side.received):
            # The kernel reports a reset once. If it reported it to a send to this side in the same entry, whose
            # completion is still to come, the next receive looks like an end.
            self._broken(side, 0)
            return
        side.dropping = False
        self._end_direction(side)

    def cut(self, side: Side) -> None:
        """Relay the bytes that `side` has sent by now, as far as its peer takes them; then act as after its FIN."""
        peer = side.peer
        if side.ended or peer is None:
            return
        # If bytes are held, or about to be, they are the last ones.
        if peer.held is None and self._all_taken(side) and not self._bulk.read(side, peer):
            return
        side.dropping = True
        side.sent = NO_SUBMISSION  # bytes that a receive still brings must not be sent by the reactor
        self._end_direction(side)

    def outlive(self, side: Side) -> None:
        """`side` is lost after its FIN: it is read to its end, and bytes from its peer are dropped."""
        peer, link = side.peer, side.link
        assert peer is not None
        assert link is not None
        self._pump.drop_held(side)
        side.broken = side.finished = True
        link.seen = CHANGED
        peer.sent, peer.short = NO_SUBMISSION, False
        if not peer.ended:
            peer.ended = peer.dropping = True
        self._watch(peer)
        if side.ended and peer.held is None and self._all_taken(side):
            self.pass_fin(side, peer)
        else:
            self._watch(side)

    def finish_to_lost(self, side: Side) -> None:
        """A send to the peer, which is lost, has failed: complete the end of `side` if it has sent FIN meanwhile."""
        peer = side.peer
        assert peer is not None
        if side.ended and not side.dropping:
            self.pass_fin(side, peer)

    def _end_direction(self, side: Side) -> None:
        peer, link = side.peer, side.link
        assert peer is not None
        assert link is not None
        side.ended = True
        link.seen = CHANGED  # the half-close timeout begins now
        if peer.held is None and self._all_taken(side):
            self.pass_fin(side, peer)
        else:
            self._watch(side)

    def _all_taken(self, side: Side) -> bool:
        """Whether the peer has taken all bytes from `side`.

        If it has not, or the result of a send is still to come, the FIN is passed on when the peer is writable.
        """
        if self._all_sent(side):
            return True
        peer = side.peer
        assert peer is not None
        if not side.short and peer.held is None:
            self._pump.hold(side, b"")
        return False

    def pass_fin(self, side: Side, peer: Side) -> None:
        """Pass on the FIN of `side`, whose peer has taken all its bytes; the second FIN ends the connection."""
        assert side.link is not None
        if peer.ended and side.held is None and not (side.dropping or peer.dropping) and self._all_taken(peer):
            self._end_connection(side.link, FINISHED, None)
        elif not peer.finished:
            peer.finished = True
            try:
                # Not by the ring, which leaves a shutdown to another thread (io_shutdown_prep: REQ_F_FORCE_ASYNC). By
                # the time it looks the descriptor up, that may be closed, or another connection's.
                sockets.send_fin(peer.fd)
            except OSError as error:
                # The error is ENOTCONN, however the connection ended.
                self._broken(peer, sockets.pending_error(peer.fd) or error.errno)
                return
            self._watch(side)
            self._watch(peer)
        else:  # `side` was cut before, and its own FIN has come now
            self._watch(side)
