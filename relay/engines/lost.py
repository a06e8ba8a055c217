"""Which peers have vanished: they owe an acknowledgement, and no answer has come for `tcp.user_timeout`.

Not left to the kernel's TCP_USER_TIMEOUT, which gives up peers that are there. Towards one that reads slowly it goes by
the time since its window last had room for all of the next segment, though it takes something all the while
(tcp_probe_timer); and with it keepalive gives a silent peer up after the first probe that is lost, whatever TCP_KEEPCNT
says (tcp_keepalive_timer).

So the kernel is asked, now and then, about the connections on which bytes have moved since everything was acknowledged:
silent ones cost nothing. A peer whose window is closed, and who says so whenever it is asked, is not lost.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

from relay.engines.contract import NEVER

LOOKS = 8  # in a timeout
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


def waits_since(before: float, peer: State, now: float) -> float:
    """Since when an answer of the peer's is waited for (monotonic seconds), NEVER: for none.

    `before` is what that was at the last look. Never too early: what is under way now may just have been sent.
    """
    if not peer.owes:
        return NEVER
    # (Between two attempts more time may pass than the timeout is long: the kernel's pauses grow to two minutes.)
    if before == NEVER or not peer.asked or now - peer.silent > before:
        return now
    return before


class Side(Protocol):
    """What is needed of one of a connection's two sides."""

    fd: int


class Link(Protocol):
    """What is needed of a connection."""

    @property
    def client(self) -> Side: ...
    @property
    def upstream(self) -> Side | None: ...


L = TypeVar("L", bound=Link)


class Debtors(Generic[L]):
    """The connections on which somebody may owe an answer. `ask` is `state`, or stands for it."""

    def __init__(self, timeout: float, ask: Callable[[int], State] = state) -> None:
        self.timeout = timeout  # seconds, 0: nobody is ever lost
        self._ask = ask
        self._since: dict[L, tuple[float, float]] = {}  # as `waits_since`, of client and upstream
        self._to_ask: list[L] = []
        self._next = 0.0

    def set_timeout(self, timeout: float) -> None:
        """Another one from now on."""
        self.timeout, self._next = timeout, 0.0
        if not timeout:
            self._since.clear()
            self._to_ask.clear()

    @property
    def looking(self) -> bool:
        """A look is under way."""
        return bool(self._to_ask)

    def moved(self, links: Iterable[L]) -> None:
        """Bytes have moved on these."""
        if self.timeout:
            for link in links:
                self._since.setdefault(link, (NEVER, NEVER))

    def begin(self, now: float) -> bool:
        """Begin to look at all of them, if it is time to; whether there are any to look at."""
        if not self._to_ask and self._since and now >= self._next:
            self._next = now + self.timeout / LOOKS
            self._to_ask = list(self._since)
        return self.looking

    def look(self, count: int, alive: Callable[[L], bool], now: float) -> list[tuple[L, bool]]:
        """Look at so many of them; returns those that have lost a peer, and whether that is the client."""
        few = self._to_ask[-count:]
        del self._to_ask[-count:]
        lost = []
        for link in few:
            upstream = link.upstream
            before = self._since.pop(link)
            if upstream is None or not alive(link):
                continue
            client_since = waits_since(before[0], self._ask(link.client.fd), now)
            upstream_since = waits_since(before[1], self._ask(upstream.fd), now)
            if now - client_since >= self.timeout:
                lost.append((link, True))
            elif now - upstream_since >= self.timeout:
                lost.append((link, False))
            elif client_since != NEVER or upstream_since != NEVER:
                self._since[link] = (client_since, upstream_since)
        return lost
