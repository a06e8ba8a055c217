"""How a direction ends in the ring engine: the FIN of one side is passed on when the other has taken all before it."""

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

End = Callable[[Link, Event, object], None]


class Pump(Protocol):
    """What is needed of the pump."""

    def broken(self, side: Side, number: int | None) -> None:
        """`side` failed with that errno."""

    def hold(self, side: Side, data: bytes) -> None:
        """Keep what came from `side` until its peer is writable."""

    def forget(self, side: Side) -> None:
        """Drop what is held for `side`."""


class HalfClose:
    """Passes ends on; tells `end` when both directions have ended, and `broken` when a side is."""

    def __init__(
        self,
        reactor: Reactor,
        interest: Interest,
        bulk: Bulk,
        end: End,
        pump: Pump,
    ) -> None:
        self._is_known = reactor.known
        self._pump = pump
        self._watch = interest.watch
        self._bulk = bulk
        self._end = end
        self._broken = pump.broken

    def ended(self, side: Side) -> None:
        """`side` seems to have sent FIN; all before it was passed on or is held."""
        if not side.finished and sockets.is_closed(side.fd) and not fin_received(side.fd, side.received):
            # The kernel tells of a reset once. A send to this side in the same entry may have been told, and its
            # failure is still to be heard of; what was received next looks like an end.
            self._broken(side, 0)
            return
        side.dropping = False
        self._over(side)

    def cut(self, side: Side) -> None:
        """Pass on what `side` has sent by now, as far as its peer takes it; then go on as if it had sent FIN."""
        peer = side.peer
        if side.ended or peer is None:
            return
        # If something is held, or about to be, that is the last.
        if peer.held is None and self._known(side) and not self._bulk.read(side, peer):
            return
        side.dropping = True
        side.sent = NO_SUBMISSION  # what a receive still brings is not to go straight through
        self._over(side)

    def outlive(self, side: Side) -> None:
        """`side` is lost, and had sent FIN: it is read to its end, and what its peer sends is dropped."""
        peer, link = side.peer, side.link
        assert peer is not None
        assert link is not None
        self._pump.forget(side)
        side.broken = side.finished = True
        link.seen = CHANGED
        peer.sent, peer.short = NO_SUBMISSION, False
        if not peer.ended:
            peer.ended = peer.dropping = True
        self._watch(peer)
        if side.ended and peer.held is None and self._known(side):
            self.finish(side, peer)
        else:
            self._watch(side)

    def over_to_lost(self, side: Side) -> None:
        """A send to the peer, which is lost, has failed: `side` may have ended meanwhile."""
        peer = side.peer
        assert peer is not None
        if side.ended and not side.dropping:
            self.finish(side, peer)

    def _over(self, side: Side) -> None:
        peer, link = side.peer, side.link
        assert peer is not None
        assert link is not None
        side.ended = True
        link.seen = CHANGED  # the half-close timeout begins now
        if peer.held is None and self._known(side):
            self.finish(side, peer)
        else:
            self._watch(side)

    def _known(self, side: Side) -> bool:
        """Whether the peer has taken everything that came from `side`.

        If not, or if that is to be told yet, the end goes on when the peer is writable.
        """
        if self._is_known(side):
            return True
        peer = side.peer
        assert peer is not None
        if not side.short and peer.held is None:
            self._pump.hold(side, b"")
        return False

    def finish(self, side: Side, peer: Side) -> None:
        """`side` has ended and its peer has taken everything: pass the FIN on; the second one ends it."""
        assert side.link is not None
        if peer.ended and side.held is None and not (side.dropping or peer.dropping) and self._known(peer):
            self._end(side.link, FINISHED, None)
        elif not peer.finished:
            peer.finished = True
            try:
                # At once: the ring leaves it to another thread, which looks the descriptor up when it comes to it, and
                # may find it closed by then, or another connection's (io_shutdown_prep: REQ_F_FORCE_ASYNC).
                sockets.finish(peer.fd)
            except OSError as error:
                self._broken(peer, sockets.pending_error(peer.fd) or error.errno)  # ENOTCONN, whatever the end was
                return
            self._watch(side)
            self._watch(peer)
        else:  # it was cut before, and its own FIN has come now
            self._watch(side)
