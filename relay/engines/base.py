"""The lives of an engine's connections: what is due for them now and then, and how they are ended by the worker.

What every engine has in common is here and in `actions`, which is about one connection. An engine inherits from
`BaseEngine` and adds what is its own: how sockets are made, how bytes move, how both are closed.
"""

from __future__ import annotations

import errno
import itertools
import socket
from abc import abstractmethod
from time import monotonic

from relay.address import Address
from relay.engines import idle
from relay.engines.acceptor import Acceptor
from relay.engines.actions import FINISHED, Actions, GracefulClose
from relay.engines.contract import Accepted, Action, Event, Handler, Linked, TcpOptions, Timeouts
from relay.engines.link import L
from relay.engines.tcp_state import acknowledged
from relay.engines.unresponsive import UnresponsivePeers

# Connections that are looked at before others have their turn: each for some 0.15 ms in all. An end takes longer.
TO_SETTLE, TO_SWEEP, TO_ASK, TO_END = 16, 128, 64, 16

GRACEFUL_CLOSE_TIMEOUT = 5.0  # seconds that a graceful end may take


class BaseEngine(Actions[L]):
    """The engine-independent half of an engine. `link_type` is the engine's record of a connection."""

    link_type: type[L]
    _acceptor: Acceptor  # made by the engine

    def __init__(self, timeouts: Timeouts, tcp: TcpOptions, held_limit: int) -> None:
        super().__init__(held_limit)
        self._timeouts = timeouts
        self._unresponsive: UnresponsivePeers[L] = UnresponsivePeers(tcp.user_timeout)
        self._to_sort: list[L] = []  # those that have lived to see a tick, and have yet to be looked at
        self._to_sweep: list[L] = []  # what the sweep under way has yet to look at
        self._to_end: list[L] = []  # those whose graceful end is over
        self._next_sweep = 0.0
        self._sweep_began = 0.0
        self._last_sweep = 0.0
        self._sweep_every = idle.interval(timeouts)

    # --- what the engine adds -------------------------------------------------------------------------------------

    @abstractmethod
    def _set_options(self, tcp: TcpOptions) -> None:
        """Options of the sockets that are dialled, or settled, from now on."""

    @abstractmethod
    def _resume(self) -> None:
        """Try again what was paused because the machine was short of something."""

    def _after(self) -> None:
        """A call from the worker is over."""

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
        self._acceptor.leave(sock)
        self._after()

    def stop_listening(self) -> None:
        self._acceptor.leave_all()
        self._after()

    def configure(self, timeouts: Timeouts, tcp: TcpOptions) -> None:
        self._timeouts = timeouts
        self._sweep_every = idle.interval(timeouts)
        self._next_sweep = 0.0  # the next one would come as late as the old timeouts allow
        self._unresponsive.set_timeout(tcp.user_timeout)
        self._set_options(tcp)

    def perform(self, handler: Handler, action: Action) -> None:
        link = handler.link
        if isinstance(link, self.link_type):
            self._guarded(link, self._perform, link, action)
            self._after()

    def local_address(self, handler: Linked) -> Address | None:
        link = handler.link
        return self._local_address(link) if isinstance(link, self.link_type) else None

    def tick(self, now: float) -> bool:
        if not self._to_sort and not self._to_sweep and not self._to_end:
            self._begin_tick(now)
        self._sort_new()
        self._sweep()
        more = self._check_unresponsive(now)
        self._end_some()
        self._after()
        return bool(more or self._to_sort or self._to_sweep or self._to_end)

    def stop(self) -> None:
        for link in list(self._links):
            self._guarded(link, self._ended, link, Event.STOP, None)
        self._after()

    # --- graceful ends --------------------------------------------------------------------------------------------

    def close_gracefully(self, count: int, event: Event) -> int:
        if count <= 0 or len(self._closing_gracefully) == len(self._links):
            return 0
        eligible = (link for link in self._links if link.active and link not in self._closing_gracefully)
        return self._begin_graceful_closes(list(itertools.islice(eligible, count)), event)

    def close_expired(self, count: int, event: Event) -> int:
        self._begin_graceful_closes([self._aged.pop() for _ in range(min(max(count, 0), len(self._aged)))], event)
        return len(self._aged)

    def _begin_graceful_closes(self, links: list[L], event: Event) -> int:
        closing = GracefulClose(event, monotonic() + GRACEFUL_CLOSE_TIMEOUT)
        for link in links:
            self._guarded(link, self._begin_graceful_close, link, closing)
        self._after()
        return len(links)

    def _begin_graceful_close(self, link: L, closing: GracefulClose) -> None:
        # Out of the way: the oldest of those that go on are to be found at once.
        self._links[link] = self._links.pop(link)
        self._closing_gracefully[link] = closing
        self._aged.discard(link)
        self._cut(link)

    def _is_over(self, link: L, closing: GracefulClose, now: float) -> bool:
        """Whether a graceful end has had its time, or is complete but for the upstream's own FIN.

        If that one has not come by the next tick, it is enough that the upstream's kernel has everything. Not before:
        what the upstream sends to a closed socket is answered with a reset, and that would overtake what is under way.
        """
        if now >= closing.deadline:
            return True
        client, upstream = link.client, link.upstream
        if upstream is None or not (client.ended and client.finished and upstream.finished):
            return False
        return acknowledged(upstream.fd)

    def _end_some(self) -> None:
        few = self._to_end[-TO_END:]
        del self._to_end[-TO_END:]
        for link in few:
            lingering = self._lingering.get(link)
            event, value = (FINISHED, None) if lingering is None else (lingering.event, lingering.value)
            self._guarded(link, self._ended, link, event, value)

    # --- what is due for all --------------------------------------------------------------------------------------

    def _begin_tick(self, now: float) -> None:
        self._to_sort, self._new = [link for link in self._new if link in self._links], []
        self._resume()
        self._acceptor.tick(now)
        for link in [link for link in self._early if link.deadline <= now]:
            if link.preread is not None:
                self._guarded(link, self._tell_preread, link, Event.PREREAD_TIMEOUT)
            else:
                self._guarded(link, self._failed, link, Event.DIAL_TIMEOUT, None)
        self._to_end = [link for link, closing in self._closing_gracefully.items() if self._is_over(link, closing, now)]
        if self._lingering:
            self._lingering = {link: lingering for link, lingering in self._lingering.items() if link in self._links}
            self._to_end += [link for link, lingering in self._lingering.items() if lingering.is_over(link, now)]
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_every
            self._last_sweep, self._sweep_began = self._sweep_began, now
            self._to_sweep = list(self._links)

    def _sort_new(self) -> None:
        """Some of the connections that have lived to see a tick: dialling still, or to be settled for a longer life."""
        few = self._to_sort[-TO_SETTLE:]
        del self._to_sort[-TO_SETTLE:]
        for link in few:
            if link in self._links:
                if link.active:
                    link.settled = True
                    self._guarded(link, self._settle, link)
                else:
                    link.settled = False
                    self._early.add(link)

    def _sweep(self) -> None:
        """Find what has been silent for too long, and report what has moved, among the next few."""
        few = [link for link in self._to_sweep[-TO_SWEEP:] if link in self._links]
        del self._to_sweep[-TO_SWEEP:]
        seen = idle.look(few, self._timeouts, self._sweep_began, self._last_sweep)
        self._unresponsive.moved(seen.moved)
        for link in seen.moved:
            try:
                self._report(link)
            except Exception:
                self._defect(link)
        for link in seen.quiet:
            self._guarded(link, self._quiet, link)
        for link in seen.long:
            self._guarded(link, self._park, link)
        for link in seen.aged:
            if link in self._links and link not in self._closing_gracefully:
                self._aged.add(link, link.handler.expires_at)
        for link, event in seen.expired:
            if link not in self._closing_gracefully:  # those have a time of their own
                lingering = self._lingering.get(link)
                told = event if lingering is None or event is Event.IDLE else lingering.half_close
                self._guarded(link, self._ended, link, told, None)

    def _check_unresponsive(self, now: float) -> bool:
        """Find peers that have vanished, among the next few; whether there are more to look at."""
        if not self._unresponsive.begin(now):
            return False
        for link, is_client in self._unresponsive.look(TO_ASK, self._goes_on, now, self._is_lost):
            self._guarded(link, self._broken, link, is_client, errno.ETIMEDOUT)
            if link in self._links:  # it goes on with the other side, which may be lost as well
                self._unresponsive.moved((link,))
        return self._unresponsive.looking

    def _goes_on(self, link: L) -> bool:
        """Whether it is there, and not being closed gracefully: those have a time of their own."""
        return link in self._links and link not in self._closing_gracefully
