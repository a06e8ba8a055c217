"""The stream engine's event loop: accepting, dialling, closing. How bytes move is in `pump`, what is due in `life`."""

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
MESSAGE = IN | OUT  # by far the most frequent: something came, and nothing else is to be said
# One registration per socket for its whole life; what the engine does not want to hear yet, it remembers.
INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

BATCH = 512  # events taken from the kernel in one call
ROUNDS = 8  # batches of messages handled before uvloop's timers and callbacks get their turn
BUSY = 4  # a batch smaller than this was the last for now: uvloop waits for the next


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
        self._closing: list[socket.SocketType] = []
        self._again: deque[Side] = deque()
        self._scheduled = False  # a call of _ready_again
        self._in_batch = False
        self._pump = Pump(self._ended, self._broken, self._again, held_limit)
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
        """Take and handle events until there are few, then let uvloop have its turn."""
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
                        self._not_yet(side, mask)
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
            if self._again:
                self._go_on()
            self._in_batch = False
            self._close_sockets()
            if len(events) < BUSY or self._again:
                break
        self._schedule()

    def _schedule(self) -> None:
        """Come back for those that have more to read.

        Bulk is worth a pass of uvloop's loop for each turn: its timers are the worker's heartbeat. One pass at a time,
        however often this function is called in between.
        """
        if self._again and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._ready_again)

    def _ready_again(self) -> None:
        self._scheduled = False
        if not self._epoll.closed:
            self._ready()

    def _go_on(self) -> None:
        """Another turn for each side that had more to read than one turn allows."""
        for _ in range(len(self._again)):
            side = self._again.popleft()
            side.queued = False
            try:
                self._pump.read(side)
            except Exception:
                self._defect(side.link)

    def _not_yet(self, side: Side, mask: int) -> None:
        """Something happened before bytes may flow. Edges come once: what may not be read yet is remembered."""
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
        """A connection was accepted, and not refused."""
        # All of family, type and protocol given: the constructor then asks the kernel for none of them.
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
        """ERR or HUP on a side of a connection that pumps. What came before it was read already, unless held back."""
        if self._is_lost(side.link, side is side.link.client):
            return  # what it had said is still being read
        number = pending_error(side.sock)
        # HUP alone is good order where FIN was sent: the side's own FIN came too, perhaps behind bytes that wait for a
        # peer that is slow to take them. Without FIN sent it means a reset whose errno another call was told.
        if number or not side.finished:
            self._pump.broken(side, number)

    # --- what `BaseEngine` asks for -----------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._acceptor.resume()

    def _after(self) -> None:
        self._close_sockets()
        self._schedule()

    def _set_options(self, tcp: TcpOptions) -> None:
        # What only matters to a connection that lives on is set when it has: a relay of short connections would spend a
        # twentieth of its time on it.
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
        """Keepalive, with its times on the upstream side: the client side has them from its listener."""
        for option in self._options.client_later:
            link.client.sock.setsockopt(*option)
        if link.upstream is not None:
            for option in self._options.upstream_later:
                link.upstream.sock.setsockopt(*option)

    def _end(self, link: Link, reset_client: bool, reset_upstream: bool) -> None:
        for side, reset in ((link.client, reset_client), (link.upstream, reset_upstream)):
            if side is None:
                continue
            # What cannot be delivered any more must not look as if nothing were missing.
            if reset or not self._pump.last(side):
                side.sock.setsockopt(*RESET_ON_CLOSE)
            self._drop(side)
        link.upstream = None
        del link.client  # with it goes the last cycle, see _drop

    def _drop(self, side: Side) -> None:
        """Forget a side. Its descriptor is closed after the batch, so that no event in it can meet a successor."""
        self._pump.forget(side)
        del self._sides[side.fd]
        side.ended = True  # for a turn that it may still have in `_again`
        self._closing.append(side.sock)
        # Break the cycles, so that the memory goes back now and not when the collector comes.
        side.peer = None
        del side.recv_into, side.send

    def _close_sockets(self) -> None:
        if self._closing and not self._in_batch:
            for sock in self._closing:
                sock.close()
            self._closing.clear()  # not within a batch: a new socket could get the number of one that has events in it
