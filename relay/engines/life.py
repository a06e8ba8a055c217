"""The life of a connection, as far as every engine has it in common: actions, deadlines, reports, defects, endings.

An engine inherits from `Life` and adds what is its own: how sockets are made, how bytes move, how both are closed. What
is here touches no socket and knows no event loop.
"""

from __future__ import annotations

import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Generic, Protocol, TypeVar

from relay.engines import silence
from relay.engines.contract import Action, Address, Close, Dial, Event, Handler, Pump, Refuse, Sniff, Timeouts, Wait

logger = logging.getLogger("relay.engine")

NO_DEADLINE = float("inf")
# Connections that are looked at before others have their turn: each for some 0.15 ms in all.
TO_SETTLE, TO_SWEEP = 16, 128

# The peer's reset, or what the kernel makes of it at the next operation.
RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED})


class Sniffing:
    """What was received from a client before anything was dialled."""

    __slots__ = ("data", "limit")

    def __init__(self) -> None:
        self.data = b""
        self.limit = 0  # bytes in all

    @property
    def room(self) -> int:
        """Bytes that may still come."""
        return self.limit - len(self.data)


class Link(silence.Link, Protocol):
    """What is needed of an engine's record of a connection."""

    handler: Handler
    settled: bool | None  # seen by a tick: None not yet, False with no bytes flowing yet, True and settled
    deadline: float  # of the dial or sniff under way, monotonic seconds; infinite while the handler is waited for
    sniffing: Sniffing | None


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
CONNECTED, FINISHED = Event.CONNECTED, Event.FINISHED
CLIENT_RESET, UPSTREAM_RESET = Event.CLIENT_RESET, Event.UPSTREAM_RESET

L = TypeVar("L", bound=Link)


class Life(ABC, Generic[L]):
    """The engine-independent half of an engine. `link_type` is the engine's record of a connection."""

    link_type: type[L]

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._links: set[L] = set()
        self._new: list[L] = []  # since the last tick; most are over by the next one
        self._to_sort: list[L] = []  # those that are not, and have yet to be looked at
        self._early: set[L] = set()  # those that lived to see a tick and no bytes flow yet: waiting or dialling
        self._to_sweep: list[L] = []  # what the sweep under way has yet to look at
        self._next_sweep = 0.0
        self._sweep_began = 0.0
        self._last_sweep = 0.0
        self._sweep_every = silence.interval(timeouts)

    # --- what the engine adds -------------------------------------------------------------------------------------

    @abstractmethod
    def _dial(self, link: L, action: Dial) -> None:
        """Begin to connect; the handler is told CONNECTED, or `_failed` called, later or at once."""

    @abstractmethod
    def _sniff(self, link: L, sniffing: Sniffing) -> None:
        """Receive from the client; `_sniffed` comes later, or at once."""

    @abstractmethod
    def _start(self, link: L, first: bytes) -> None:
        """Let bytes flow, `first` towards the upstream before anything else."""

    @abstractmethod
    def _end(self, link: L, reset_client: bool, reset_upstream: bool) -> None:
        """Close both sides as `contract.Close` says. The link is no longer among `_links`."""

    @abstractmethod
    def _drop_upstream(self, link: L) -> None:
        """Close the upstream side, if there is one: a dial came to nothing."""

    @abstractmethod
    def _local_address(self, link: L) -> Address | None:
        """This end of the client's side; None if the socket has none any more."""

    @abstractmethod
    def _settle(self, link: L) -> None:
        """The connection has lived for a while: set what only matters to one that lives on."""

    def _quiet(self, link: L) -> None:
        """Bytes moved until the last sweep, and none since."""

    def _park(self, link: L) -> None:
        """No byte has moved for long, and none may for longer."""

    @abstractmethod
    def _resume(self) -> None:
        """Try again what was paused because the machine was short of something."""

    def _after(self) -> None:
        """A call from the worker is over."""

    # --- what the worker calls ------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        return len(self._links)

    def perform(self, handler: Handler, action: Action) -> None:
        link = handler.link
        if isinstance(link, self.link_type):
            self._guarded(link, self._perform, link, action)
            self._after()

    def local_address(self, handler: Handler) -> Address | None:
        link = handler.link
        return self._local_address(link) if isinstance(link, self.link_type) else None

    def tick(self, now: float) -> bool:
        if not self._to_sort and not self._to_sweep:
            self._begin_tick(now)
        self._sort_new()
        self._sweep()
        self._after()
        return bool(self._to_sort or self._to_sweep)

    def _begin_tick(self, now: float) -> None:
        self._to_sort, self._new = [link for link in self._new if link in self._links], []
        self._resume()
        for link in [link for link in self._early if link.deadline <= now]:
            if link.sniffing is not None:
                self._guarded(link, self._sniffed, link, Event.SNIFF_TIMEOUT)
            else:
                self._guarded(link, self._failed, link, Event.DIAL_TIMEOUT, None)
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_every
            self._last_sweep, self._sweep_began = self._sweep_began, now
            self._to_sweep = list(self._links)

    def stop(self) -> None:
        for link in list(self._links):
            self._guarded(link, self._ended, link, Event.STOP, None)
        self._after()

    def _add(self, link: L) -> None:
        """A connection was accepted, and not refused."""
        link.handler.link = link
        self._links.add(link)
        self._new.append(link)

    # --- actions --------------------------------------------------------------------------------------------------

    def _perform(self, link: L, action: Action) -> None:
        kind = type(action)
        if kind is Dial:
            assert isinstance(action, Dial)
            link.deadline = monotonic() + action.timeout
            self._dial(link, action)
        elif kind is Pump:
            assert isinstance(action, Pump)
            link.active = monotonic()
            if link.settled is False:
                self._early.discard(link)
                self._new.append(link)
            self._start(link, action.first)
        elif kind is Sniff:
            assert isinstance(action, Sniff)
            self._begin_sniff(link, action)
        elif kind is Close:
            assert isinstance(action, Close)
            self._close(link, action.reset_client, action.reset_upstream)
        elif kind is Refuse:
            self._close(link, reset_client=True, reset_upstream=True)
        elif kind is Wait:
            link.deadline = NO_DEADLINE
        else:
            raise TypeError(f"not an action: {action!r}")

    def _begin_sniff(self, link: L, action: Sniff) -> None:
        if link.client.ended:
            raise TypeError("there is nothing more to sniff: the client has ended")
        if link.sniffing is None:
            link.sniffing = Sniffing()
            link.deadline = monotonic() + action.timeout if action.timeout else NO_DEADLINE
        link.sniffing.limit = action.limit
        if link.sniffing.room <= 0:
            raise TypeError(f"there is nothing more to sniff: {action.limit} bytes were received")
        self._sniff(link, link.sniffing)

    def _received_early(self, link: L, part: bytes) -> None:
        """Something came from a client that is sniffed; nothing: it has ended its direction."""
        assert link.sniffing is not None
        if part:
            link.sniffing.data += part
            link.client.received += len(part)
            self._sniffed(link, Event.SNIFFED)
        else:
            link.client.ended = True
            self._sniffed(link, Event.SNIFF_ENDED)

    def _sniffed(self, link: L, event: Event) -> None:
        assert link.sniffing is not None
        action = link.handler.advance(event, link.sniffing.data)
        if type(action) is not Sniff or event is Event.SNIFF_TIMEOUT:
            link.sniffing = None
        self._perform(link, action)

    def _failed(self, link: L, event: Event, number: int | None) -> None:
        """A dial came to nothing; the handler may have another address."""
        self._drop_upstream(link)
        self._perform(link, link.handler.advance(event, number))

    def _ended(self, link: L, event: Event, value: object) -> None:
        upstream = link.upstream
        up, down = link.client.received, upstream.received if upstream is not None else 0
        reset_client, reset_upstream = link.handler.end(event, value, up, down)
        self._close(link, reset_client, reset_upstream)

    def _broken(self, link: L, is_client: bool, number: int) -> None:
        """One side failed with that errno (0: hung up without one): the connection is over."""
        if not number or number in RESET_ERRNOS:
            self._ended(link, CLIENT_RESET if is_client else UPSTREAM_RESET, None)
        else:
            self._ended(link, Event.CLIENT_LOST if is_client else Event.UPSTREAM_LOST, number)

    def _close(self, link: L, reset_client: bool, reset_upstream: bool) -> None:
        if link not in self._links:
            return
        link.handler.link = None
        self._links.discard(link)
        if link.settled is False:
            self._early.discard(link)
        self._end(link, reset_client, reset_upstream)

    def _report(self, link: L) -> None:
        upstream = link.upstream
        link.handler.moved(link.client.received, upstream.received if upstream is not None else 0)

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
        seen = silence.look(few, self._timeouts, self._sweep_began, self._last_sweep)
        for link in seen.moved:
            try:
                self._report(link)
            except Exception:
                self._defect(link)
        for link in seen.quiet:
            self._guarded(link, self._quiet, link)
        for link in seen.long:
            self._guarded(link, self._park, link)
        for link, event in seen.expired:
            self._guarded(link, self._ended, link, event, None)

    # --- defects --------------------------------------------------------------------------------------------------

    def _guarded(self, link: L, step: Callable[..., None], *args: object) -> None:
        """Take a step for one connection, unless it is gone; if the step fails, only this connection ends."""
        if link in self._links:
            try:
                step(*args)
            except Exception:
                self._defect(link)

    def _defect(self, link: L) -> None:
        """An exception while handling one connection: log it, end that one, go on with the others.

        Never raises, whatever the handler does: the events of a batch come once, and another connection's may be next.
        """
        logger.exception("internal error while handling a connection")
        if link not in self._links:
            return
        try:
            self._report(link)
        except Exception:
            logger.exception("internal error while counting a connection's bytes")
        try:
            self._perform(link, link.handler.advance(Event.DEFECT, None))
        except Exception:
            logger.exception("internal error while ending a connection after an internal error")
        self._close(link, reset_client=True, reset_upstream=True)
