"""Which peers have vanished: they owe an acknowledgement, and no answer has come for `tcp.user_timeout`.

Not left to the kernel's TCP_USER_TIMEOUT, which gives up peers that are there. Towards one that reads slowly it goes by
the time since its window last had room for all of the next segment, though it takes something all the while
(tcp_probe_timer); and with it keepalive gives a silent peer up after the first probe that is lost, whatever TCP_KEEPCNT
says (tcp_keepalive_timer).

So the kernel is asked, now and then, about the connections on which bytes have moved since everything was acknowledged:
silent ones cost nothing, and neither does a peer from which bytes came since the last look. A peer whose window is
closed, and who says so whenever it is asked, is not lost.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

from relay.engines.contract import NEVER

LOOKS = 4  # in a timeout
STILL = 2.0  # seconds without a byte after which most peers have acknowledged everything
PROBES = 2  # without an answer: a peer that was probed half a second ago leaves one out (tcp_invalid_ratelimit)
# struct tcp_info, linux/tcp.h: probes; unacked; last_data_sent, last_ack_recv (both milliseconds ago); notsent_bytes
# (since Linux 4.6).
_INFO = struct.Struct("=3xB 20x I 16x I 8x I 84x I")
_buffer = ctypes.create_string_buffer(_INFO.size)
_pointer = ctypes.c_void_p(ctypes.addressof(_buffer))
# PyDLL keeps the interpreter lock: giving it up costs more than the call.
_getsockopt = ctypes.PyDLL(None).getsockopt


class State(NamedTuple):
    """What the kernel knows of a peer."""

    owes: bool  # it has not acknowledged everything, or its window has no room for what is to be sent
    asked: bool  # something was sent to it after its last answer, or probes of its closed window
    silent: float  # seconds since it last answered


def state(fd: int) -> State:
    """That of the peer of a TCP socket; of one that is none, that it owes nothing."""
    size = ctypes.c_int(_INFO.size)
    failed = _getsockopt(fd, int(socket.IPPROTO_TCP), socket.TCP_INFO, _pointer, ctypes.byref(size))
    if failed or size.value < _INFO.size:
        return State(False, False, 0.0)
    probes, unacked, sent, answered, not_sent = _INFO.unpack(_buffer)
    asked = sent < answered if unacked else probes >= PROBES
    return State(bool(unacked or not_sent), asked, answered / 1000)


def waits_since(before: float, peer: State, moved: float, now: float) -> float:
    """Since when an answer of the peer's is waited for (monotonic seconds), NEVER: for none.

    `before` is what that was at the last look. `moved`: nothing was sent for the first time after that. So it is never
    too early.
    """
    if not peer.owes:
        return NEVER
    if not peer.asked:  # between two attempts more time may pass than any timeout: the kernel's pauses grow
        return now
    answered = now - peer.silent
    if before != NEVER and answered <= before:
        return before
    return moved if answered < moved else now


class Side(Protocol):
    """What is needed of one of a connection's two sides."""

    fd: int
    received: int  # bytes


class Link(Protocol):
    """What is needed of a connection."""

    @property
    def active(self) -> float:
        """When a byte was last seen to have moved, monotonic seconds."""

    @property
    def seen(self) -> int:
        """Bytes received both ways by then."""

    @property
    def client(self) -> Side: ...
    @property
    def upstream(self) -> Side | None: ...


L = TypeVar("L", bound=Link)


class Debt(NamedTuple):
    """What was found at the last look: `waits_since` for both sides, and the bytes received from them."""

    client_since: float
    upstream_since: float
    client_received: int
    upstream_received: int


class Debtors(Generic[L]):
    """The connections on which somebody may owe an answer. `ask` is `state`, or stands for it."""

    def __init__(self, timeout: float, ask: Callable[[int], State] = state) -> None:
        self.timeout = timeout  # seconds, 0: nobody is ever lost
        self._ask = ask
        self._debts: dict[L, Debt] = {}
        self._to_look_at: dict[L, Debt] = {}  # of the look under way
        self._next = 0.0

    def set_timeout(self, timeout: float) -> None:
        """Another one from now on."""
        self.timeout, self._next = timeout, 0.0
        if not timeout:
            self._debts, self._to_look_at = {}, {}

    @property
    def looking(self) -> bool:
        """A look is under way."""
        return bool(self._to_look_at)

    def moved(self, links: Iterable[L]) -> None:
        """Bytes have moved on these."""
        if self.timeout:
            for link in links:
                if link not in self._debts and link not in self._to_look_at:
                    self._debts[link] = NO_DEBT

    def begin(self, now: float) -> bool:
        """Begin to look at all of them, if it is time to; whether there are any to look at."""
        if not self._to_look_at and self._debts and now >= self._next:
            self._next = now + self.timeout / LOOKS
            self._to_look_at, self._debts = self._debts, {}
        return self.looking

    def look(
        self,
        count: int,
        alive: Callable[[L], bool],
        now: float,
        known: Callable[[L, bool], bool] = lambda _link, _is_client: False,
    ) -> list[tuple[L, bool]]:
        """Look at so many of them; returns those that have lost a peer, and whether that is the client.

        `known` says whether a connection's client (or upstream) is known to be lost; the other one is still looked at.
        """
        lost = []
        for _ in range(min(count, len(self._to_look_at))):
            link, before = self._to_look_at.popitem()
            client, upstream = link.client if alive(link) else None, link.upstream
            if client is None or upstream is None:
                continue
            up, down = client.received, upstream.received
            moved = link.active if link.seen == up + down else now
            still = now - moved >= STILL
            client_since = upstream_since = NEVER
            # While bytes go to and fro, one from whom some came since the last look need not be asked.
            if (still or up == before.client_received) and not known(link, True):
                client_since = waits_since(before.client_since, self._ask(client.fd), moved, now)
            if (still or down == before.upstream_received) and not known(link, False):
                upstream_since = waits_since(before.upstream_since, self._ask(upstream.fd), moved, now)
            if now - client_since >= self.timeout:
                lost.append((link, True))
            elif now - upstream_since >= self.timeout:
                lost.append((link, False))
            elif not still or client_since != NEVER or upstream_since != NEVER:
                self._debts[link] = Debt(client_since, upstream_since, up, down)
        if not self._to_look_at:
            self._to_look_at = {}  # for its memory: an empty dictionary keeps its size
        return lost


NO_DEBT = Debt(NEVER, NEVER, -1, -1)
