"""What every engine does for all of its connections: periodic checks, timeouts, graceful closes, and stopping.

This module and `actions`, which handles one connection, are the part that all engines share. An engine inherits from
`BaseEngine` and adds its own part: how sockets are opened, how bytes move, how sockets are closed.
"""

from __future__ import annotations

import errno
import itertools
import socket
from abc import abstractmethod
from collections.abc import Sequence
from time import monotonic

from relay.address import Address
from relay.engines import idle
from relay.engines.acceptor import Acceptor
from relay.engines.actions import FINISHED, Actions, GracefulClose
from relay.engines.contract import Accepted, Action, Event, Handler, Linked, SharedTimeouts, TcpOptions, Timeouts
from relay.engines.link import L
from relay.engines.tcp_state import acknowledged
from relay.engines.unresponsive import UnresponsivePeers

# Connections handled by one tick before other events get their turn. Each batch takes some 0.15 ms; the close batch
# takes longer.
SETTLE_BATCH, SWEEP_BATCH, PEER_CHECK_BATCH, CLOSE_BATCH = 16, 128, 64, 16

GRACEFUL_CLOSE_TIMEOUT = 5.0  # seconds that a graceful close may take


class BaseEngine(Actions[L]):
    """The engine-independent half of an engine. `link_type` is the class of the engine's connection records."""

    link_type: type[L]
    _acceptor: Acceptor  # created by the engine

    def __init__(self, timeouts: Timeouts, tcp: TcpOptions, held_limit: int) -> None:
        super().__init__(held_limit)
        self._timeouts = SharedTimeouts(timeouts)
        self._unresponsive: UnresponsivePeers[L] = UnresponsivePeers(tcp.user_timeout)
        self._to_settle: list[L] = []  # connections older than a tick that have yet to be settled, or put into `_early`
        self._to_sweep: list[L] = []  # connections that the sweep under way has yet to check
        self._to_close: list[L] = []  # connections whose graceful or lingering close is over
        # Monotonic seconds at which the next sweep is due, and at which the last two were begun.
        self._next_sweep = self._sweep_started = self._previous_sweep = 0.0
        self._sweep_interval = idle.check_interval(timeouts)

    # --- what the engine implements -------------------------------------------------------------------------------

    @abstractmethod
    def _set_options(self, tcp: TcpOptions) -> None:
        """Set the socket options for sockets dialled, and connections settled, from now on."""

    @abstractmethod
    def _resume(self) -> None:
        """Try again what was paused for lack of descriptors or memory. Called at every tick."""

    def _after_call(self) -> None:
        """Do what a call from the worker has left over. Called at the end of each call."""

    # --- what the worker calls ------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        return len(self._links)

    @property
    def accept_pauses(self) -> int:
        return self._acceptor.pauses

    def listen(self, sock: socket.socket, accepted: Accepted, *, shared: bool = False) -> None:
        self._acceptor.add(sock, accepted, shared)

    def unlisten(self, sock: socket.socket) -> None:
        self._acceptor.unlisten(sock)
        self._after_call()

    def stop_listening(self) -> None:
        self._acceptor.unlisten_all()
        self._after_call()

    def configure(self, timeouts: Timeouts, tcp: TcpOptions, others: Sequence[Timeouts] = ()) -> None:
        self._timeouts = SharedTimeouts(timeouts)
        self._sweep_interval = idle.check_interval(timeouts, others)
        self._next_sweep = 0.0  # now: the old interval may be too long for the new timeouts
        self._unresponsive.set_timeout(tcp.user_timeout)
        self._set_options(tcp)

    def perform(self, handler: Handler, action: Action) -> None:
        link = handler.link
        if isinstance(link, self.link_type):
            self._guarded(link, self._perform, link, action)
            self._after_call()

    def local_address(self, handler: Linked) -> Address | None:
        link = handler.link
        return self._local_address(link) if isinstance(link, self.link_type) else None

    def tick(self, now: float) -> bool:
        if not self._to_settle and not self._to_sweep and not self._to_close:
            self._begin_tick(now)
        self._settle_batch()
        self._sweep_batch()
        more = self._check_unresponsive(now)
        self._close_batch()
        self._after_call()
        return bool(more or self._to_settle or self._to_sweep or self._to_close)

    def stop(self) -> None:
        for link in list(self._links):
            self._guarded(link, self._ended, link, Event.STOP, None)
        self._after_call()

    # --- graceful close -------------------------------------------------------------------------------------------

    def close_gracefully(self, count: int, event: Event) -> int:
        if count <= 0 or len(self._graceful_closes) == len(self._links):
            return 0
        eligible = (link for link in self._links if link.active and link not in self._graceful_closes)
        return self._close_each_gracefully(list(itertools.islice(eligible, count)), event)

    def close_expired(self, count: int, event: Event) -> int:
        count = min(max(count, 0), len(self._expired))
        self._close_each_gracefully([self._expired.pop() for _ in range(count)], event)
        return len(self._expired)

    def _close_each_gracefully(self, links: list[L], event: Event) -> int:
        closing = GracefulClose(event, monotonic() + GRACEFUL_CLOSE_TIMEOUT)
        for link in links:
            self._guarded(link, self._begin_graceful_close, link, closing)
        self._after_call()
        return len(links)

    def _begin_graceful_close(self, link: L, closing: GracefulClose) -> None:
        # To the end of the accept order, so that the next call finds the oldest eligible connection at once.
        self._links[link] = self._links.pop(link)
        self._graceful_closes[link] = closing
        self._expired.discard(link)
        self._cut(link)

    def _graceful_close_is_over(self, link: L, closing: GracefulClose, now: float) -> bool:
        """True if a graceful close has timed out, or lacks only the upstream's FIN.

        The upstream's FIN is not waited for beyond a tick, once the upstream has acknowledged everything. Closing
        before that could lose data: the kernel answers what the upstream sends to a closed socket with a reset, which
        would overtake the bytes under way.
        """
        if now >= closing.deadline:
            return True
        client, upstream = link.client, link.upstream
        if upstream is None or not (client.ended and client.finished and upstream.finished):
            return False
        return acknowledged(upstream.fd)

    def _close_batch(self) -> None:
        """End the next batch of connections whose graceful or lingering close is over."""
        batch = self._to_close[-CLOSE_BATCH:]
        del self._to_close[-CLOSE_BATCH:]
        for link in batch:
            lingering = self._lingering.get(link)
            event, value = (FINISHED, None) if lingering is None else (lingering.event, lingering.value)
            self._guarded(link, self._ended, link, event, value)

    # --- ticks ----------------------------------------------------------------------------------------------------

    def _begin_tick(self, now: float) -> None:
        self._to_settle, self._new = [link for link in self._new if link in self._links], []
        self._resume()
        self._acceptor.tick(now)
        for link in [link for link in self._early if link.deadline <= now]:
            if link.preread is not None:
                self._guarded(link, self._report_preread, link, Event.PREREAD_TIMEOUT)
            else:
                self._guarded(link, self._failed, link, Event.DIAL_TIMEOUT, None)
        self._to_close = [
            link for link, closing in self._graceful_closes.items() if self._graceful_close_is_over(link, closing, now)
        ]
        if self._lingering:
            self._lingering = {link: lingering for link, lingering in self._lingering.items() if link in self._links}
            self._to_close += [link for link, lingering in self._lingering.items() if lingering.is_over(link, now)]
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_interval
            self._previous_sweep, self._sweep_started = self._sweep_started, now
            self._to_sweep = list(self._links)

    def _settle_batch(self) -> None:
        """Settle the next batch of connections older than a tick; those that do not pump yet go to `_early`."""
        batch = self._to_settle[-SETTLE_BATCH:]
        del self._to_settle[-SETTLE_BATCH:]
        for link in batch:
            if link in self._links:
                if link.active:
                    link.settled = True
                    self._guarded(link, self._settle, link)
                else:
                    link.settled = False
                    self._early.add(link)

    def _sweep_batch(self) -> None:
        """Check the next batch of connections: report bytes that moved, and end connections over a timeout."""
        batch = [link for link in self._to_sweep[-SWEEP_BATCH:] if link in self._links]
        del self._to_sweep[-SWEEP_BATCH:]
        result = idle.check(batch, self._timeouts, self._sweep_started, self._previous_sweep)
        self._unresponsive.add(result.moved)
        for link in result.moved:
            try:
                self._report_bytes(link)
            except Exception:
                self._defect(link)
        for link in result.quiet:
            self._guarded(link, self._quiet, link)
        for link in result.long_idle:
            self._guarded(link, self._park, link)
        for link in result.expired:
            if link in self._links and link not in self._graceful_closes:
                self._expired.add(link, link.handler.expires_at)
        for link, event in result.timed_out:
            if link not in self._graceful_closes:  # a graceful close has its own timeout
                lingering = self._lingering.get(link)
                reported = event if lingering is None or event is Event.IDLE else lingering.half_close
                self._guarded(link, self._ended, link, reported, None)

    def _check_unresponsive(self, now: float) -> bool:
        """End the connections of the next batch whose peer is unresponsive; True if there are more to check."""
        if not self._unresponsive.start_round(now):
            return False
        for link, is_client in self._unresponsive.check(PEER_CHECK_BATCH, self._is_open, now, self._is_lost):
            self._guarded(link, self._broken, link, is_client, errno.ETIMEDOUT)
            if link in self._links:  # it lingers: the other side may become unresponsive as well
                self._unresponsive.add((link,))
        return self._unresponsive.checking

    def _is_open(self, link: L) -> bool:
        """True if the connection is open and not closing gracefully, which has its own timeout."""
        return link in self._links and link not in self._graceful_closes
