"""The stream engine: epoll events, accept, dial and close. `pump` moves bytes; `engines.base` has periodic checks."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections import deque

from relay.address import Address
from relay.engines.acceptor import Acceptor
from relay.engines.actions import CONNECTED
from relay.engines.base import BaseEngine
from relay.engines.contract import Action, Dial, Event, Handler, TcpOptions, Timeouts
from relay.engines.options import engine_options
from relay.engines.preread import PrereadBuffer
from relay.engines.stream.dialer import pending_error, start_dial
from relay.engines.stream.link import RESET_ON_CLOSE, Link, Side
from relay.engines.stream.pump import Pump

IN, OUT, BROKEN = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP
ENDING = select.EPOLLRDHUP
MESSAGE = IN | OUT  # by far the most frequent mask: bytes came, and nothing else
# Each socket is registered once, until it is closed. Events that come too early are remembered in its `Side`.
INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

BATCH = 512  # events taken from epoll in one call
ROUNDS = 8  # batches handled before uvloop's timers and callbacks get their turn
FEW = 4  # events: after a smaller batch, return to uvloop, which waits for the next


class StreamEngine(BaseEngine[Link]):
    """See `relay.engines.contract.Engine`."""

    name = "stream"
    link_type = Link

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        tcp: TcpOptions,
        *,
        report_source: bool = False,
        held_limit: int = 0,
    ) -> None:
        super().__init__(timeouts, tcp, held_limit)
        self._loop = loop
        self._set_options(tcp)
        self._report_source = report_source
        self._epoll = select.epoll()
        self._acceptor = Acceptor(self._watch_listener, self._epoll.unregister, self._begin, self._refuse)
        self._sides: dict[int, Side] = {}
        self._dropped: list[socket.SocketType] = []  # sockets to close after the batch
        self._read_queue: deque[Side] = deque()  # sides with more to read than one turn allows
        self._scheduled = False  # `_ready_again` is scheduled
        self._in_batch = False
        self._pump = Pump(self._ended, self._broken, self._read_queue, held_limit)
        loop.add_reader(self._epoll.fileno(), self._ready)

    # --- what the worker calls ------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        return self._pump.held + self._preread_budget.bytes

    def close(self) -> None:
        self._acceptor.close()
        self.stop()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    # --- events ---------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Handle batches of epoll events until one is small, then let uvloop have its turn."""
        sides, acceptor, read, flush = self._sides, self._acceptor, self._pump.read, self._pump.flush
        for _ in range(ROUNDS):
            events = self._epoll.poll(0, BATCH)
            self._in_batch = True
            for fd, mask in events:
                side = sides.get(fd)
                if side is None:
                    # A listener, or a side that an earlier event of this batch closed.
                    if fd in acceptor:
                        acceptor.accept(fd)
                    continue
                try:
                    if side.peer is None:
                        self._before_pumping(side, mask)
                        continue
                    if mask == MESSAGE and side.held is None:
                        read(side)
                        continue
                    if mask & ENDING:
                        side.ending = True
                    if mask & IN:
                        read(side)
                    if mask & OUT and side.held is not None:
                        flush(side)
                    if mask & BROKEN and side.peer is not None:
                        self._hung_up(side)
                except Exception:
                    self._defect(side.link)
            if self._read_queue:
                self._read_queued()
            self._in_batch = False
            self._close_sockets()
            if len(events) < FEW or self._read_queue:
                break
        self._schedule()

    def _schedule(self) -> None:
        """Schedule another `_ready` for the sides in the read queue, after one pass of uvloop's loop.

        The pass lets uvloop's timers run even under bulk traffic: they are the worker's heartbeat. However often this
        method is called, only one pass is scheduled at a time.
        """
        if self._read_queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._ready_again)

    def _ready_again(self) -> None:
        self._scheduled = False
        if not self._epoll.closed:
            self._ready()

    def _read_queued(self) -> None:
        """Give each side in the read queue another turn."""
        for _ in range(len(self._read_queue)):
            side = self._read_queue.popleft()
            side.queued = False
            try:
                self._pump.read(side)
            except Exception:
                self._defect(side.link)

    def _before_pumping(self, side: Side, mask: int) -> None:
        """Handle an event of a connection that does not pump yet. Edges come once, so unread bytes are remembered."""
        link = side.link
        if side is link.client:
            if mask & (IN | ENDING):
                side.readable = True
                side.ending = bool(mask & ENDING)
            if mask & BROKEN:
                self._pump.broken(side, pending_error(side.sock))
            elif link.preread is not None:
                self._receive_early(link, link.preread)
        elif side is link.upstream:
            if mask & BROKEN:
                self._failed(link, Event.DIAL_FAILED, pending_error(side.sock) or errno.ECONNREFUSED)
            elif mask & OUT:
                if mask & (IN | ENDING):
                    side.readable = True
                    side.ending = bool(mask & ENDING)
                self._connected(link, side)

    def _watch_listener(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def _refuse(self, fd: int) -> None:
        """Close an accepted descriptor with RST."""
        with socket.socket(fileno=fd) as client:
            client.setsockopt(*RESET_ON_CLOSE)

    def _begin(self, fd: int, family: int, handler: Handler, action: Action) -> None:
        """Begin with a connection that was accepted and not refused."""
        # With family, type and protocol given, the constructor does not ask the kernel for them.
        client = socket.SocketType(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
        link = Link(handler, client)
        self._add(link)
        side = link.client
        self._sides[side.fd] = side
        try:
            self._epoll.register(side.fd, INTEREST)
            self._perform(link, action)
        except Exception:
            self._defect(side.link)

    def _hung_up(self, side: Side) -> None:
        """Handle ERR or HUP while pumping. What came before it has been read already, unless it is held back."""
        if self._is_lost(side.link, side is side.link.client):
            return  # it is known to be lost, and what it sent is still being read
        number = pending_error(side.sock)
        # HUP alone is in order once FIN was sent to the side: its own FIN came too, perhaps behind bytes that wait for
        # a slow peer. If no FIN was sent, HUP alone means a reset whose errno another call has already returned.
        if number or not side.finished:
            self._pump.broken(side, number)

    # --- what `BaseEngine` requires -----------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._acceptor.resume()

    def _after_call(self) -> None:
        self._close_sockets()
        self._schedule()

    def _set_options(self, tcp: TcpOptions) -> None:
        # Options that only matter to a longer connection are set by `_settle`: with short connections they would take a
        # twentieth of the relay's time.
        self._options = engine_options(tcp)

    def _receive_early(self, link: Link, preread: PrereadBuffer) -> None:
        side = link.client
        if not side.readable:
            return
        try:
            part = side.sock.recv(preread.room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            side.readable = False
            return
        except OSError as error:
            self._pump.broken(side, error.errno)
            return
        if 0 < len(part) < preread.room and not side.ending:
            side.readable = False
        self._received_early(link, part)

    def _start(self, link: Link, first: bytes) -> None:
        self._pump.start(link, first)

    def _dial(self, link: Link, action: Dial) -> None:
        try:
            sock = start_dial(action, self._options.upstream_first)
        except OSError as error:
            self._failed(link, Event.DIAL_FAILED, error.errno or errno.EINVAL)
            return
        side = link.upstream = Side(link, sock)
        self._sides[side.fd] = side
        self._epoll.register(side.fd, INTEREST)

    def _connected(self, link: Link, side: Side) -> None:
        source: Address | None = side.sock.getsockname() if self._report_source else None
        self._perform(link, link.handler.advance(CONNECTED, source))

    def _cut(self, link: Link) -> None:
        assert link.upstream is not None
        self._pump.cut(link.upstream)

    def _outlive(self, link: Link, is_client: bool) -> None:
        side = link.client if is_client else link.upstream
        assert side is not None
        self._pump.outlive(side)

    def _drop_upstream(self, link: Link) -> None:
        side, link.upstream = link.upstream, None
        if side is not None:
            self._drop(side)

    def _local_address(self, link: Link) -> Address | None:
        try:
            address: Address = link.client.sock.getsockname()
        except OSError:
            return None
        return address

    def _settle(self, link: Link) -> None:
        """Turn keepalive on, and set its times upstream; the client's side has inherited them from its listener."""
        for option in self._options.client_later:
            link.client.sock.setsockopt(*option)
        if link.upstream is not None:
            for option in self._options.upstream_later:
                link.upstream.sock.setsockopt(*option)

    def _end(self, link: Link, reset_client: bool, reset_upstream: bool) -> None:
        for side, reset in ((link.client, reset_client), (link.upstream, reset_upstream)):
            if side is None:
                continue
            # A stream that can no longer be delivered whole must end with RST, so that it does not look complete.
            if reset or not self._pump.flush_last(side):
                side.sock.setsockopt(*RESET_ON_CLOSE)
            self._drop(side)
        link.upstream = None
        del link.client  # breaks the last cycle, see _drop

    def _drop(self, side: Side) -> None:
        """Forget a side. Its descriptor is closed after the batch, so that a new socket cannot get its events."""
        self._pump.forget(side)
        del self._sides[side.fd]
        side.ended = True  # it may still be in the read queue
        self._dropped.append(side.sock)
        # Break the reference cycles, so that memory is freed now and not by the garbage collector.
        side.peer = None
        del side.recv_into, side.send

    def _close_sockets(self) -> None:
        if self._dropped and not self._in_batch:
            for sock in self._dropped:
                sock.close()
            self._dropped.clear()  # not within a batch: a new socket could get a descriptor that has events in it
