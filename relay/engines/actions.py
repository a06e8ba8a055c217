"""One connection of an engine: what its handler answers is carried out, and what happens to it is told.

An engine inherits from `life.Life`, which inherits from this and adds what is due for all connections now and then.
What is here touches no socket and knows no event loop: the engine adds that.
"""

from __future__ import annotations

import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

from relay.address import Address
from relay.engines import silence
from relay.engines.acknowledged import fin_received
from relay.engines.ages import Ages
from relay.engines.contract import NEVER, Action, Close, Dial, Event, Pump, Refuse, Sniff, Wait
from relay.engines.lingering import Lingering
from relay.engines.preread import Preread

logger = logging.getLogger("relay.engine")

# The peer's reset, or what the kernel makes of it at the next operation.
RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED})


class Sniffing:
    """What was received from a client before anything was dialled."""

    __slots__ = ("data", "least", "limit")

    def __init__(self, limit: int) -> None:
        self.data: bytes | bytearray = b""  # nearly all hellos come in one piece, and are kept as it came
        self.limit = limit  # bytes in all
        self.least = 0  # bytes in all that the handler wants to see

    def add(self, part: bytes) -> bool:
        """Keep what has come; whether the handler is to be told."""
        if not self.data:
            self.data = part
        elif type(self.data) is bytearray:
            self.data += part
        else:
            self.data = bytearray(self.data) + part
        return len(self.data) >= min(self.least, self.limit)

    @property
    def room(self) -> int:
        """Bytes that may still come."""
        return self.limit - len(self.data)


class Side(silence.Side, Protocol):
    """What is needed of one of a connection's two sides."""

    fd: int
    dropping: bool  # `ended`, though its FIN has not come: what comes is dropped
    finished: bool  # FIN sent


class Link(silence.Link, Protocol):
    """What is needed of an engine's record of a connection."""

    settled: bool | None  # seen by a tick: None not yet, False with no bytes flowing yet, True and settled
    deadline: float  # of the dial or sniff under way, monotonic seconds; infinite while the handler is waited for
    sniffing: Sniffing | None

    @property
    def client(self) -> Side: ...
    @property
    def upstream(self) -> Side | None: ...


class Retirement(NamedTuple):
    """A graceful end under way."""

    event: Event  # what the handler is to be told, however it ends
    deadline: float  # monotonic seconds


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
CONNECTED, FINISHED, SNIFFED, SNIFF_TIMEOUT = Event.CONNECTED, Event.FINISHED, Event.SNIFFED, Event.SNIFF_TIMEOUT
CLIENT_RESET, UPSTREAM_RESET, STOP = Event.CLIENT_RESET, Event.UPSTREAM_RESET, Event.STOP

L = TypeVar("L", bound=Link)


class Actions(ABC, Generic[L]):
    """The engine-independent part of what happens to one connection."""

    def __init__(self, held_limit: int = 0) -> None:
        self._preread: Preread[L] = Preread(held_limit)
        self._links: dict[L, None] = {}  # as accepted; those that are being retired have been moved to the end
        self._new: list[L] = []  # since the last tick; most are over by the next one
        self._early: set[L] = set()  # those that lived to see a tick and no bytes flow yet: waiting or dialling
        self._retiring: dict[L, Retirement] = {}
        self._lingering: dict[L, Lingering] = {}  # those that are over are forgotten at the next tick
        self._aged: Ages[L] = Ages()  # those that have lived long enough, and are not being retired yet

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
            if self._preread.whole:
                self._preread.forget(link)
            if link.settled is False:
                self._early.discard(link)
                self._new.append(link)
            self._start(link, action.first)
        elif type(action) is Sniff:
            self._begin_sniff(link, action)
        elif type(action) is Close:
            self._close(link, action.reset_client, action.reset_upstream)
        elif type(action) is Refuse:
            self._close(link, reset_client=True, reset_upstream=True)
        elif type(action) is Wait:
            link.deadline = NEVER
        else:
            raise TypeError(f"not an action: {action!r}")

    def _begin_sniff(self, link: L, action: Sniff) -> None:
        if link.client.ended:
            raise TypeError("there is nothing more to sniff: the client has ended")
        sniffing = link.sniffing
        if sniffing is None:
            sniffing = link.sniffing = Sniffing(action.limit)
            link.deadline = monotonic() + action.timeout if action.timeout else NEVER
        sniffing.limit, sniffing.least = action.limit, action.least
        if sniffing.limit <= len(sniffing.data):
            raise TypeError(f"there is nothing more to sniff: {action.limit} bytes were received")
        self._sniff(link, sniffing)

    def _received_early(self, link: L, part: bytes) -> None:
        """Something came from a client that is sniffed; nothing: it has ended its direction."""
        sniffing = link.sniffing
        assert sniffing is not None
        if part:
            link.client.received += len(part)
            if sniffing.add(part):
                self._sniffed(link, SNIFFED)
            else:
                self._sniff(link, sniffing)
            if link.sniffing is sniffing and link in self._links:
                self._unfinished(link, len(part))
        else:
            link.client.ended = True
            self._sniffed(link, Event.SNIFF_ENDED)

    def _unfinished(self, link: L, size: int) -> None:
        """So many bytes have come of what is not whole; if that is too much in all, the oldest have no time left."""
        self._preread.grow(link, size)
        while (oldest := self._preread.too_much()) is not None:
            self._preread.forget(oldest)
            self._guarded(oldest, self._sniffed, oldest, SNIFF_TIMEOUT)

    def _sniffed(self, link: L, event: Event) -> None:
        assert link.sniffing is not None
        data = bytes(link.sniffing.data)
        if event is not SNIFFED:  # which tells of the bytes itself
            self._report(link)
        action = link.handler.advance(event, data)
        if type(action) is not Sniff or event is SNIFF_TIMEOUT:
            link.sniffing = None
            if data and type(action) is not Close:
                self._preread.finish(link, len(data))
        self._perform(link, action)

    def _failed(self, link: L, event: Event, number: int | None) -> None:
        """A dial came to nothing; the handler may have another address."""
        self._drop_upstream(link)
        self._perform(link, link.handler.advance(event, number))

    def _ended(self, link: L, event: Event, value: object) -> None:
        if self._retiring and event is not STOP and link in self._retiring:
            event, value = self._retiring[link].event, None
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
        if self._retiring:
            self._retiring.pop(link, None)
        if self._aged.waiting:
            self._aged.discard(link)
        if self._preread.bytes:
            self._preread.forget(link)
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
