"""One connection of an engine: what its handler answers is carried out, and what happens to it is told.

An engine inherits from `base.BaseEngine`, which inherits from this class and adds what is due for all connections.
What is here touches no socket and knows no event loop: the engine adds that.
"""

from __future__ import annotations

import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Generic, NamedTuple

from relay.address import Address
from relay.engines.contract import NEVER, Action, Close, Dial, Event, Preread, Pump, Refuse, Wait
from relay.engines.expiry_queue import ExpiryQueue
from relay.engines.lingering import Lingering
from relay.engines.link import L
from relay.engines.preread import PrereadBudget, PrereadBuffer
from relay.engines.tcp_state import fin_received

logger = logging.getLogger("relay.engine")

# The peer's reset, or what the kernel makes of it at the next operation.
RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED})


class GracefulClose(NamedTuple):
    """A graceful end under way."""

    event: Event  # what the handler is to be told, however it ends
    deadline: float  # monotonic seconds


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
CONNECTED, FINISHED, PREREAD, PREREAD_TIMEOUT = Event.CONNECTED, Event.FINISHED, Event.PREREAD, Event.PREREAD_TIMEOUT
CLIENT_RESET, UPSTREAM_RESET, STOP = Event.CLIENT_RESET, Event.UPSTREAM_RESET, Event.STOP


class Actions(ABC, Generic[L]):
    """The engine-independent part of what happens to one connection."""

    def __init__(self, held_limit: int = 0) -> None:
        self._preread_budget: PrereadBudget[L] = PrereadBudget(held_limit)
        self._links: dict[L, None] = {}  # as accepted; those that are closed gracefully have been moved to the end
        self._new: list[L] = []  # since the last tick; most are over by the next one
        self._early: set[L] = set()  # those that lived to see a tick and no bytes flow yet: waiting or dialling
        self._closing_gracefully: dict[L, GracefulClose] = {}
        self._lingering: dict[L, Lingering] = {}  # those that are over are forgotten at the next tick
        self._aged: ExpiryQueue[L] = (
            ExpiryQueue()
        )  # those that have lived long enough, and are not closed gracefully yet

    # --- what the engine adds -------------------------------------------------------------------------------------

    @abstractmethod
    def _dial(self, link: L, action: Dial) -> None:
        """Begin to connect; the handler is told CONNECTED, or `_failed` called, later or at once."""

    @abstractmethod
    def _receive_early(self, link: L, preread: PrereadBuffer) -> None:
        """Receive from the client; `_tell_preread` comes later, or at once."""

    @abstractmethod
    def _start(self, link: L, first: bytes) -> None:
        """Let bytes flow, `first` towards the upstream before anything else."""

    @abstractmethod
    def _end(self, link: L, reset_client: bool, reset_upstream: bool) -> None:
        """Close both sides as `contract.Close` says. The link is no longer among `_links`."""

    @abstractmethod
    def _cut(self, link: L) -> None:
        """From now on as if the upstream had sent FIN: pass on what it has sent by now, drop what comes later.

        The connection is not over before its FIN has come, or `life` says so.
        """

    @abstractmethod
    def _outlive(self, link: L, is_client: bool) -> None:
        """One side is lost, and had sent FIN: the other one gets what came before it, then FIN.

        What the other one sends itself is dropped from now on, uncounted; its FIN finishes the connection.
        """

    def _counts(self, _link: L, _is_client: bool) -> bool:
        """Whether `Side.received` is all that was taken from the side's socket."""
        return True

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

    def _add(self, link: L) -> None:
        """A connection was accepted, and not refused."""
        link.handler.link = link
        self._links[link] = None
        self._new.append(link)

    # --- actions --------------------------------------------------------------------------------------------------

    def _perform(self, link: L, action: Action) -> None:
        if type(action) is Dial:
            link.deadline = monotonic() + action.timeout
            self._dial(link, action)
        elif type(action) is Pump:
            link.active = monotonic()
            if self._preread_budget.whole:
                self._preread_budget.forget(link)
            if link.settled is False:
                self._early.discard(link)
                self._new.append(link)
            self._start(link, action.first)
        elif type(action) is Preread:
            self._begin_preread(link, action)
        elif type(action) is Close:
            self._close(link, action.reset_client, action.reset_upstream)
        elif type(action) is Refuse:
            self._close(link, reset_client=True, reset_upstream=True)
        elif type(action) is Wait:
            link.deadline = NEVER
        else:
            raise TypeError(f"not an action: {action!r}")

    def _begin_preread(self, link: L, action: Preread) -> None:
        if link.client.ended:
            raise TypeError("there is nothing more to preread: the client has ended")
        preread = link.preread
        if preread is None:
            preread = link.preread = PrereadBuffer(action.limit)
            link.deadline = monotonic() + action.timeout if action.timeout else NEVER
        preread.limit, preread.least = action.limit, action.least
        if preread.limit <= len(preread.data):
            raise TypeError(f"there is nothing more to preread: {action.limit} bytes were received")
        self._receive_early(link, preread)

    def _received_early(self, link: L, part: bytes) -> None:
        """Something came from a client before its upstream was dialled; nothing: it has ended its direction."""
        preread = link.preread
        assert preread is not None
        if part:
            link.client.received += len(part)
            if preread.add(part):
                self._tell_preread(link, PREREAD)
            else:
                self._receive_early(link, preread)
            if link.preread is preread and link in self._links:
                self._unfinished(link, len(part))
        else:
            link.client.ended = True
            self._tell_preread(link, Event.PREREAD_ENDED)

    def _unfinished(self, link: L, size: int) -> None:
        """So many bytes have come of what is not whole; if that is too much in all, the oldest have no time left."""
        self._preread_budget.grow(link, size)
        while (oldest := self._preread_budget.too_much()) is not None:
            self._preread_budget.forget(oldest)
            self._guarded(oldest, self._tell_preread, oldest, PREREAD_TIMEOUT)

    def _tell_preread(self, link: L, event: Event) -> None:
        assert link.preread is not None
        data = bytes(link.preread.data)
        if event is not PREREAD:  # which tells of the bytes itself
            self._report(link)
        action = link.handler.advance(event, data)
        if type(action) is not Preread or event is PREREAD_TIMEOUT:
            link.preread = None
            if data and type(action) is not Close:
                self._preread_budget.finish(link, len(data))
        self._perform(link, action)

    def _failed(self, link: L, event: Event, number: int | None) -> None:
        """A dial came to nothing; the handler may have another address."""
        self._drop_upstream(link)
        self._perform(link, link.handler.advance(event, number))

    def _ended(self, link: L, event: Event, value: object) -> None:
        if self._closing_gracefully and event is not STOP and link in self._closing_gracefully:
            event, value = self._closing_gracefully[link].event, None
        elif event is FINISHED and self._lingering:
            event, value = self._finished(link)
        upstream = link.upstream
        up, down = link.client.received, upstream.received if upstream is not None else 0
        reset_client, reset_upstream = link.handler.end(event, value, up, down)
        self._close(link, reset_client, reset_upstream)

    def _finished(self, link: L) -> tuple[Event, object]:
        """The event of a connection both of whose sides have ended; one was lost if it owed an answer to the last."""
        lingering = self._lingering.get(link)
        if lingering is None or lingering.value is None:
            return FINISHED, None
        return lingering.event, lingering.value

    def _broken(self, link: L, is_client: bool, number: int) -> None:
        """One side failed with that errno (0: hung up without one).

        The connection is over, unless all that the side had to say was received: then the other one is to get it.
        """
        if not number or number in RESET_ERRNOS:
            event, value = CLIENT_RESET if is_client else UPSTREAM_RESET, None
        else:
            event, value = Event.CLIENT_LOST if is_client else Event.UPSTREAM_LOST, number
        if link.active and link not in self._lingering and self._had_ended(link, is_client, number):
            self._lingering[link] = Lingering(is_client, event, value)
            self._outlive(link, is_client)
        else:
            self._ended(link, event, value)

    def _had_ended(self, link: L, is_client: bool, number: int) -> bool:
        """Whether a side that failed with that errno had sent FIN before, and the kernel has received it."""
        side = link.client if is_client else link.upstream
        assert side is not None
        if side.ended:
            return not side.dropping
        if number == errno.EPIPE:  # the first that is told of a reset behind a FIN (tcp_reset: TCP_CLOSE_WAIT)
            return True
        if number == errno.ECONNRESET and not side.finished:  # and of one without a FIN; by far the most frequent
            return False
        return self._counts(link, is_client) and fin_received(side.fd, side.received)

    def _is_lost(self, link: L, is_client: bool) -> bool:
        """Whether that side is the one that a lingering connection has lost."""
        lingering = self._lingering.get(link)
        return lingering is not None and lingering.is_client is is_client

    def _close(self, link: L, reset_client: bool, reset_upstream: bool) -> None:
        try:
            del self._links[link]
        except KeyError:
            return
        link.handler.link = None
        if link.settled is False:
            self._early.discard(link)
        if self._closing_gracefully:
            self._closing_gracefully.pop(link, None)
        if self._aged.waiting:
            self._aged.discard(link)
        if self._preread_budget.bytes:
            self._preread_budget.forget(link)
        if self._lingering and (lingering := self._lingering.get(link)) is not None:
            # One that was taken for lost may come back: what it got is cut short, and must not end as if it were whole.
            reset_client = reset_client or lingering.is_client
            reset_upstream = reset_upstream or not lingering.is_client
        self._end(link, reset_client, reset_upstream)

    def _report(self, link: L) -> None:
        upstream = link.upstream
        link.handler.moved(link.client.received, upstream.received if upstream is not None else 0)

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
