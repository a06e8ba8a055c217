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

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple

from relay.engines.contract import NEVER
from relay.engines.link import L
from relay.engines.tcp_state import PeerState, peer_state

LOOKS = 4  # in a timeout
STILL = 2.0  # seconds without a byte after which most peers have acknowledged everything


def unanswered_since(before: float, peer: PeerState, moved: float, now: float) -> float:
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


class Unanswered(NamedTuple):
    """What was found at the last look: `unanswered_since` for both sides, and the bytes received from them."""

    client_since: float
    upstream_since: float
    client_received: int
    upstream_received: int


class UnresponsivePeers(Generic[L]):
    """The connections on which somebody may owe an answer. `ask` is `peer_state`, or stands in for it."""

    def __init__(self, timeout: float, ask: Callable[[int], PeerState] = peer_state) -> None:
        self.timeout = timeout  # seconds, 0: nobody is ever lost
        self._ask = ask
        self._unanswered: dict[L, Unanswered] = {}
        self._to_look_at: dict[L, Unanswered] = {}  # of the look under way
        self._next = 0.0

    def set_timeout(self, timeout: float) -> None:
        """Another one from now on."""
        self.timeout, self._next = timeout, 0.0
        if not timeout:
            self._unanswered, self._to_look_at = {}, {}

    @property
    def looking(self) -> bool:
        """A look is under way."""
        return bool(self._to_look_at)

    def moved(self, links: Iterable[L]) -> None:
        """Bytes have moved on these."""
        if self.timeout:
            for link in links:
                if link not in self._unanswered and link not in self._to_look_at:
                    self._unanswered[link] = ANSWERED

    def begin(self, now: float) -> bool:
        """Begin to look at all of them, if it is time to; whether there are any to look at."""
        if not self._to_look_at and self._unanswered and now >= self._next:
            self._next = now + self.timeout / LOOKS
            self._to_look_at, self._unanswered = self._unanswered, {}
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
                client_since = unanswered_since(before.client_since, self._ask(client.fd), moved, now)
            if (still or down == before.upstream_received) and not known(link, False):
                upstream_since = unanswered_since(before.upstream_since, self._ask(upstream.fd), moved, now)
            if now - client_since >= self.timeout:
                lost.append((link, True))
            elif now - upstream_since >= self.timeout:
                lost.append((link, False))
            elif not still or client_since != NEVER or upstream_since != NEVER:
                self._unanswered[link] = Unanswered(client_since, upstream_since, up, down)
        if not self._to_look_at:
            self._to_look_at = {}  # for its memory: an empty dictionary keeps its size
        return lost


ANSWERED = Unanswered(NEVER, NEVER, -1, -1)
