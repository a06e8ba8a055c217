"""What every engine does for one connection: carry out its handler's actions and report events to the handler.

An engine inherits from `base.BaseEngine`, which inherits from this class and adds the work on all connections. This
class knows no event loop and moves no bytes; the engine adds that in the abstract methods.
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

# The errno of a peer's reset, or of the next operation on the socket after it.
RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED})


class GracefulClose(NamedTuple):
    """A graceful close under way."""

    event: Event  # reported to the handler, however the connection ends
    deadline: float  # monotonic seconds


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
CONNECTED, FINISHED, PREREAD, PREREAD_TIMEOUT = Event.CONNECTED, Event.FINISHED, Event.PREREAD, Event.PREREAD_TIMEOUT
CLIENT_RESET, UPSTREAM_RESET, STOP = Event.CLIENT_RESET, Event.UPSTREAM_RESET, Event.STOP


class Actions(ABC, Generic[L]):
    """The engine-independent handling of one connection."""

    def __init__(self, held_limit: int = 0) -> None:
        self._preread_budget: PrereadBudget[L] = PrereadBudget(held_limit)
        self._links: dict[L, None] = {}  # all connections, in accept order; those closing gracefully are at the end
        self._new: list[L] = []  # accepted, or begun to pump, since the last tick; most are closed by the next one
        self._early: set[L] = set()  # older than a tick and not pumping yet: prereading, waiting or dialling
        self._graceful_closes: dict[L, GracefulClose] = {}
        self._lingering: dict[L, Lingering] = {}  # closed connections are removed at the next tick
        self._expired: ExpiryQueue[L] = ExpiryQueue()  # past `Handler.expires_at`, and not closing gracefully yet

    # --- what the engine implements -------------------------------------------------------------------------------

    @abstractmethod
    def _dial(self, link: L, action: Dial) -> None:
        """Begin to connect. Report CONNECTED to the handler, or call `_failed`, later or at once."""

    @abstractmethod
    def _receive_early(self, link: L, preread: PrereadBuffer) -> None:
        """Receive from the client. Call `_received_early` with what has come, later or at once."""

    @abstractmethod
    def _start(self, link: L, first: bytes) -> None:
        """Start pumping, with `first` sent to the upstream before anything else."""

    @abstractmethod
    def _end(self, link: L, reset_client: bool, reset_upstream: bool) -> None:
        """Close both sides as described in `contract.Close`. The link has been removed from `_links`."""

    @abstractmethod
    def _cut(self, link: L) -> None:
        """Treat the upstream as if it had sent FIN: pass on what it has sent by now, drop what it sends later.

        The connection stays open until the upstream's real FIN has come, or `BaseEngine` ends it.
        """

    @abstractmethod
    def _outlive(self, link: L, is_client: bool) -> None:
        """Begin a lingering close: one side is lost and had sent FIN. The other side gets the rest of it, then FIN.

        What the other side sends from now on is dropped and not counted; its FIN finishes the connection.
        """

    def _counts(self, _link: L, _is_client: bool) -> bool:
        """True if `Side.received` counts everything that was read from the side's socket."""
        return True

    @abstractmethod
    def _drop_upstream(self, link: L) -> None:
        """Close the upstream side, if there is one, after a dial failed."""

    @abstractmethod
    def _local_address(self, link: L) -> Address | None:
        """The local address of the client's socket; None if the socket is no longer connected."""

    @abstractmethod
    def _settle(self, link: L) -> None:
        """Set the socket options that only matter to a connection older than a tick (`EngineOptions`, later)."""

    def _quiet(self, link: L) -> None:
        """Called when a connection falls silent: bytes had moved at the previous sweep, and none have since."""

    def _park(self, link: L) -> None:
        """Called when no byte has moved for `idle.LONG_IDLE`: keep the connection cheaply from now on."""

    def _add(self, link: L) -> None:
        """Add a connection that was accepted and not refused."""
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
        """Handle bytes from a client that has no upstream yet; an empty `part` is its FIN."""
        preread = link.preread
        assert preread is not None
        if part:
            link.client.received += len(part)
            if preread.add(part):
                self._report_preread(link, PREREAD)
            else:
                self._receive_early(link, preread)
            if link.preread is preread and link in self._links:
                self._count_partial_preread(link, len(part))
        else:
            link.client.ended = True
            self._report_preread(link, Event.PREREAD_ENDED)

    def _count_partial_preread(self, link: L, size: int) -> None:
        """Count `size` more bytes of a partial preread; over budget, report PREREAD_TIMEOUT to the oldest ones."""
        self._preread_budget.add_partial(link, size)
        while (oldest := self._preread_budget.over_budget()) is not None:
            self._preread_budget.forget(oldest)
            self._guarded(oldest, self._report_preread, oldest, PREREAD_TIMEOUT)

    def _report_preread(self, link: L, event: Event) -> None:
        assert link.preread is not None
        data = bytes(link.preread.data)
        if event is not PREREAD:  # on PREREAD the handler counts the bytes itself
            self._report_bytes(link)
        action = link.handler.advance(event, data)
        if type(action) is not Preread or event is PREREAD_TIMEOUT:
            link.preread = None
            if data and type(action) is not Close:
                self._preread_budget.complete(link, len(data))
        self._perform(link, action)

    def _failed(self, link: L, event: Event, number: int | None) -> None:
        """Report a failed dial (DIAL_FAILED or DIAL_TIMEOUT); the handler may return another address."""
        self._drop_upstream(link)
        self._perform(link, link.handler.advance(event, number))

    def _ended(self, link: L, event: Event, value: object) -> None:
        if self._graceful_closes and event is not STOP and link in self._graceful_closes:
            event, value = self._graceful_closes[link].event, None
        elif event is FINISHED and self._lingering:
            event, value = self._finish_event(link)
        upstream = link.upstream
        up, down = link.client.received, upstream.received if upstream is not None else 0
        reset_client, reset_upstream = link.handler.end(event, value, up, down)
        self._close(link, reset_client, reset_upstream)

    def _finish_event(self, link: L) -> tuple[Event, object]:
        """The event for a connection both of whose sides have ended.

        If a side was lost, rather than reset, it is that side's LOST event: the errno is the lingering close's value.
        """
        lingering = self._lingering.get(link)
        if lingering is None or lingering.value is None:
            return FINISHED, None
        return lingering.event, lingering.value

    def _broken(self, link: L, is_client: bool, number: int) -> None:
        """One side failed with errno `number` (0: hung up without an errno).

        The connection ends, unless the side's FIN was received before: then it lingers, so that the other side gets
        everything.
        """
        if not number or number in RESET_ERRNOS:
            event, value = CLIENT_RESET if is_client else UPSTREAM_RESET, None
        else:
            event, value = Event.CLIENT_LOST if is_client else Event.UPSTREAM_LOST, number
        if link.active and link not in self._lingering and self._had_sent_fin(link, is_client, number):
            self._lingering[link] = Lingering(is_client, event, value)
            self._outlive(link, is_client)
        else:
            self._ended(link, event, value)

    def _had_sent_fin(self, link: L, is_client: bool, number: int) -> bool:
        """True if a side that failed with errno `number` had sent FIN before, and the kernel has received it."""
        side = link.client if is_client else link.upstream
        assert side is not None
        if side.ended:
            return not side.dropping
        if number == errno.EPIPE:  # the first one after a reset behind a FIN (tcp_reset: TCP_CLOSE_WAIT)
            return True
        if number == errno.ECONNRESET and not side.finished:  # after a reset without a FIN; by far the most frequent
            return False
        return self._counts(link, is_client) and fin_received(side.fd, side.received)

    def _is_lost(self, link: L, is_client: bool) -> bool:
        """True if the connection lingers, and the given side is the lost one."""
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
        if self._graceful_closes:
            self._graceful_closes.pop(link, None)
        if self._expired.live:
            self._expired.discard(link)
        if self._preread_budget.bytes:
            self._preread_budget.forget(link)
        if self._lingering and (lingering := self._lingering.get(link)) is not None:
            # The lost side's host may come back. Its stream was truncated, so it must see RST rather than FIN.
            reset_client = reset_client or lingering.is_client
            reset_upstream = reset_upstream or not lingering.is_client
        self._end(link, reset_client, reset_upstream)

    def _report_bytes(self, link: L) -> None:
        upstream = link.upstream
        link.handler.moved(link.client.received, upstream.received if upstream is not None else 0)

    # --- defects --------------------------------------------------------------------------------------------------

    def _guarded(self, link: L, step: Callable[..., None], *args: object) -> None:
        """Call `step` for a connection, unless it is closed; if the step raises, only this connection ends."""
        if link in self._links:
            try:
                step(*args)
            except Exception:
                self._defect(link)

    def _defect(self, link: L) -> None:
        """Log the current exception and end the connection that it was raised for; the others go on.

        Never raises, whatever the handler does: the events of a batch come once, and the next one may belong to another
        connection.
        """
        logger.exception("internal error while handling a connection")
        if link not in self._links:
            return
        try:
            self._report_bytes(link)
        except Exception:
            logger.exception("internal error while counting a connection's bytes")
        try:
            self._perform(link, link.handler.advance(Event.DEFECT, None))
        except Exception:
            logger.exception("internal error while ending a connection after an internal error")
        self._close(link, reset_client=True, reset_upstream=True)
