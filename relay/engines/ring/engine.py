"""The ring engine: accept, dial, close. `reactor` and `pump` move the bytes, `base.BaseEngine` has the deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from time import monotonic

from relay.address import Address
from relay.engines.actions import CLIENT_RESET, CONNECTED, RESET_ERRNOS, UPSTREAM_RESET
from relay.engines.base import BaseEngine
from relay.engines.contract import Action, Dial, Event, Handler, Preread, Pump, TcpOptions, Timeouts
from relay.engines.options import engine_options
from relay.engines.preread import PrereadBuffer
from relay.engines.ring import sockets
from relay.engines.ring.abi import IORING_CQE_F_MORE
from relay.engines.ring.closer import Closer
from relay.engines.ring.dialer import Dialer
from relay.engines.ring.interest import READABLE, Interest
from relay.engines.ring.listening import Listening
from relay.engines.ring.pump import Pump as BytePump
from relay.engines.ring.pump import buffer_count
from relay.engines.ring.reactor import CONNECT, POLL_IN, POLL_OUT, RECV, SEND, SEND_MANY, SLOT_BITS, SLOT_MASK
from relay.engines.ring.records import Link, Side
from relay.engines.ring.selector import RingLoop
from relay.engines.ring.slots import Slots

CLOSE_SECONDS = 1.0  # for the last operations to complete when the engine closes


class RingEngine(BaseEngine[Link]):
    """See `relay.engines.contract.Engine`. Runs on a `RingLoop`. Raises OSError if the kernel refuses a part of it.

    `buffers`: the number of buffers for receives, a power of two; 0: as many as `held_limit` allows.
    """

    name = "ring"
    link_type = Link

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        tcp: TcpOptions,
        *,
        report_source: bool = False,
        held_limit: int = 0,
        buffers: int = 0,
        multishot_receive: bool = True,
    ) -> None:
        super().__init__(timeouts, tcp, held_limit)
        if not isinstance(loop, RingLoop):
            raise TypeError("the ring engine needs a RingLoop")
        self._report_source = report_source
        self._reactor = reactor = loop.ring_selector.reactor
        self._slots = Slots(reactor)
        self._interest = Interest(reactor, self._slots, self, multishot=multishot_receive)
        count = buffers or buffer_count(held_limit)
        self._pump = BytePump(reactor, self._interest, self._ended, self._broken, held_limit, count)
        self._closer = Closer(reactor, self._slots, self._interest, self._pump)
        self._close_socket = self._closer.close
        self._acceptor = Listening(reactor, self._slots, self._begin, self._closer.reset_descriptor).acceptor
        self._sides = reactor.sides
        self._dialer = Dialer(reactor, self._slots, self._closer)
        self._set_options(tcp)
        reactor.handlers[RECV] = self._on_receive
        reactor.handlers[SEND] = self._on_send
        reactor.handlers[SEND_MANY] = self._on_send
        reactor.handlers[CONNECT] = self._on_connect
        reactor.handlers[POLL_IN] = self._on_poll_in
        reactor.handlers[POLL_OUT] = self._on_poll_out

    # --- what the worker calls ------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        return self._pump.held + self._preread_budget.bytes

    def close(self) -> None:
        self._acceptor.close()
        self.stop()
        deadline = monotonic() + CLOSE_SECONDS
        while self._slots.open and monotonic() < deadline:
            self._reactor.turn()
        self._reactor.detach()
        self._interest.close()

    # --- completions ----------------------------------------------------------------------------------------------

    def _on_receive(self, user_data: int, result: int, flags: int) -> None:
        side = self._sides[user_data]
        if not flags & IORING_CQE_F_MORE:
            side.busy -= 1
        link = side.link
        if link is None:
            self._slots.release(side)
            return
        try:
            if -result in RESET_ERRNOS:
                side.armed = 0
                side.broken = True
                self._ended(link, CLIENT_RESET if side is link.client else UPSTREAM_RESET, None)
            else:
                self._pump.received(side, result, flags)
        except Exception:
            self._defect(link)

    def _on_send(self, user_data: int, result: int, _flags: int) -> None:
        side = self._sides[user_data & SLOT_MASK]
        link = side.link
        if link is None:
            return
        try:
            self._pump.sent(user_data, result, side, user_data >> SLOT_BITS & 15 == SEND_MANY)
        except Exception:
            self._defect(link)

    def _on_poll_in(self, user_data: int, result: int, _flags: int) -> None:
        side = self._sides[user_data & SLOT_MASK]
        side.busy -= 1
        was, side.poll_in = side.poll_in, 0
        link = side.link
        if link is None:
            self._slots.release(side)
            return
        try:
            if was == READABLE and link.preread is not None:
                self._read_early(link, link.preread)
            else:
                self._pump.readable(side, was, result)
        except Exception:
            self._defect(link)

    def _on_poll_out(self, user_data: int, _result: int, _flags: int) -> None:
        side = self._sides[user_data & SLOT_MASK]
        side.busy -= 1
        side.poll_out = 0
        if side.link is None:
            self._slots.release(side)
        else:
            self.writable(side)

    def writable(self, side: Side) -> None:
        """See `interest.EpollHandler`."""
        link = side.link
        if link is not None:
            self._guarded(link, self._pump.writable, side)

    def hung_up(self, side: Side) -> None:
        """See `interest.EpollHandler`."""
        link = side.link
        if link is not None:
            self._guarded(link, self._pump.hung_up, side)

    def _on_connect(self, user_data: int, result: int, _flags: int) -> None:
        side = self._sides[user_data & SLOT_MASK]
        side.busy -= 1
        link = side.link
        if link is None:
            self._slots.release(side)
            return
        try:
            if result < 0:
                self._failed(link, Event.DIAL_FAILED, -result)
                return
            source: Address | None = sockets.local_address(side.fd) if self._report_source else None
            action = link.handler.advance(CONNECTED, source)
            if type(action) is Pump and link.settled is None:  # by far the most frequent
                link.active = monotonic()
                if self._preread_budget.whole:
                    self._preread_budget.forget(link)
                client = link.client
                if client.poll_in or client.ended or self._interest.under_pressure:
                    self._pump.start(client, side, action.first)
                else:
                    self._pump.start_new(client, side, action.first)
            else:
                self._perform(link, action)
        except Exception:
            self._defect(link)

    def _begin(self, fd: int, _family: int, handler: Handler, action: Action) -> None:
        """A connection was accepted, and not refused."""
        link = Link(handler)
        try:
            link.client = self._slots.take(link, fd)
        except OSError:
            self._closer.reset_descriptor(fd)
            handler.advance(Event.DEFECT, None)
            return
        self._add(link)
        try:
            if type(action) is Dial:  # by far the most frequent
                link.deadline = monotonic() + action.timeout
                self._dial(link, action)
            elif type(action) is Preread:
                self._begin_preread(link, action)
            else:
                self._perform(link, action)
        except Exception:
            self._defect(link)

    # --- what `BaseEngine` needs ----------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._acceptor.resume()
        # Their dial, or the look-up before it, has lasted for a tick: the client may reset meanwhile.
        for link in self._early:
            self._pump.watch(link.client)
        self._interest.tick()

    def _set_options(self, tcp: TcpOptions) -> None:
        options = engine_options(tcp)
        self._dialer.options = options.upstream_first
        self._client_later = sockets.Options(options.client_later)
        self._upstream_later = sockets.Options(options.upstream_later)

    def _dial(self, link: Link, action: Dial) -> None:
        try:
            self._dialer.dial(link, action)
        except OSError as error:
            self._failed(link, Event.DIAL_FAILED, error.errno or errno.EINVAL)

    def _receive_early(self, link: Link, preread: PrereadBuffer) -> None:
        client = link.client
        if client.poll_in:
            self._pump.watch(client)
        else:
            self._interest.poll_readable(client)

    def _read_early(self, link: Link, preread: PrereadBuffer) -> None:
        """A client has sent bytes before its upstream was dialled, or has sent FIN."""
        try:
            part = sockets.receive_bytes(link.client.fd, preread.room)
        except OSError as error:
            self._pump.broken(link.client, error.errno)
            return
        if part is None:
            self._pump.watch(link.client)
        else:
            self._received_early(link, part)

    def _start(self, link: Link, first: bytes) -> None:
        assert link.upstream is not None
        self._pump.start(link.client, link.upstream, first)

    def _cut(self, link: Link) -> None:
        assert link.upstream is not None
        self._pump.cut(link.upstream)

    def _outlive(self, link: Link, is_client: bool) -> None:
        side = link.client if is_client else link.upstream
        assert side is not None
        self._pump.outlive(side)

    def _counts(self, link: Link, is_client: bool) -> bool:
        side = link.client if is_client else link.upstream
        assert side is not None
        return not side.armed  # a receive may have taken bytes whose completion is still to come

    def _drop_upstream(self, link: Link) -> None:
        side, link.upstream = link.upstream, None
        if side is not None:
            self._close_socket(side, reset=False)

    def _local_address(self, link: Link) -> Address | None:
        return sockets.local_address(link.client.fd)

    def _settle(self, link: Link) -> None:
        """Set keepalive, with its times on the upstream side: the client side has them from its listener."""
        with contextlib.suppress(OSError):
            self._client_later.set(link.client.fd)
            if link.upstream is not None:
                self._upstream_later.set(link.upstream.fd)

    def _quiet(self, link: Link) -> None:
        """Look for a reset that came together with data: the receive that took the data does not report it.

        The poll behind the receive was woken once for both, took the data, found nothing left, and waits to be woken
        again (io_poll_check_events; a FIN in the same place is seen, tcp_inq_hint).
        """
        for side in (link.client, link.upstream):
            if side is not None and side.armed and not side.broken and (number := sockets.pending_error(side.fd)):
                self._pump.broken(side, number)
                return

    def _park(self, link: Link) -> None:
        """Replace receives by polls, which take half of the kernel's memory: 0.6 KiB less for a connection's two."""
        for side in (link.client, link.upstream):
            if side is not None and side.armed:
                side.bulk = True  # the next message is read with recv(2), and a receive armed after it
                self._interest.watch(side)

    def _end(self, link: Link, reset_client: bool, reset_upstream: bool) -> None:
        self._close_socket(link.client, reset_client)
        if link.upstream is not None:
            self._close_socket(link.upstream, reset_upstream)
            link.upstream = None
        del link.client
