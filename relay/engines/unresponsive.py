"""Find unresponsive peers: those with unacknowledged data that have not answered for `tcp.user_timeout`.

The kernel's own TCP_USER_TIMEOUT is not used, since it gives up peers that are alive. For a peer that reads slowly, it
goes by the time since the window last had room for the whole next segment, though the peer takes bytes all the while
(tcp_probe_timer). And with it set, keepalive gives a silent peer up after the first probe that is lost, whatever
TCP_KEEPCNT says (tcp_keepalive_timer).

Instead TCP_INFO is read now and then, for connections on which bytes have moved since everything was last acknowledged.
Idle connections cost nothing, and a peer that has sent bytes since the previous check is not read either. A peer with a
closed window that answers window probes is not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple

from relay.engines.contract import NEVER
from relay.engines.link import L
from relay.engines.tcp_state import PeerState, peer_state

CHECKS = 4  # per timeout
STILL = 2.0  # seconds without a byte after which most peers have acknowledged everything


def unanswered_since(previous: float, peer: PeerState, moved: float, now: float) -> float:
    """Since when an answer of the peer is overdue, in monotonic seconds; NEVER: none is.

    `previous` is the result of the previous check. `moved` is the latest time at which new data can have been sent, so
    a peer is never declared lost too early.
    """
    if not peer.pending:
        return NEVER
    if not peer.probed:  # the kernel's backoff between attempts may exceed any timeout
        return now
    answered = now - peer.silent
    if previous != NEVER and answered <= previous:
        return previous
    return moved if answered < moved else now


class PeerCheck(NamedTuple):
    """The result of a connection's previous check: `unanswered_since` of both sides, and bytes received from them."""

    client_since: float
    upstream_since: float
    client_received: int
    upstream_received: int


NOT_CHECKED = PeerCheck(NEVER, NEVER, -1, -1)


class UnresponsivePeers(Generic[L]):
    """The connections whose peers may have unacknowledged data, checked in rounds of small batches.

    `read_state` is `peer_state`, or a stand-in for it.
    """

    def __init__(self, timeout: float, read_state: Callable[[int], PeerState] = peer_state) -> None:
        self.timeout = timeout  # seconds; 0: no peer is ever lost
        self._read_state = read_state
        self._checked: dict[L, PeerCheck] = {}  # to be checked in the next round, with their previous result
        self._to_check: dict[L, PeerCheck] = {}  # to be checked in the current round
        self._next_round = 0.0

    def set_timeout(self, timeout: float) -> None:
        """Replace the timeout; 0 forgets all connections."""
        self.timeout, self._next_round = timeout, 0.0
        if not timeout:
            self._checked, self._to_check = {}, {}

    @property
    def checking(self) -> bool:
        """True while a round is unfinished."""
        return bool(self._to_check)

    def add(self, links: Iterable[L]) -> None:
        """Check these connections from now on, since bytes have moved on them."""
        if self.timeout:
            for link in links:
                if link not in self._checked and link not in self._to_check:
                    self._checked[link] = NOT_CHECKED

    def start_round(self, now: float) -> bool:
        """Start a round over all connections if one is due; True if there are any to check."""
        if not self._to_check and self._checked and now >= self._next_round:
            self._next_round = now + self.timeout / CHECKS
            self._to_check, self._checked = self._checked, {}
        return self.checking

    def check(
        self,
        count: int,
        is_open: Callable[[L], bool],
        now: float,
        is_lost: Callable[[L, bool], bool] = lambda _link, _is_client: False,
    ) -> list[tuple[L, bool]]:
        """Check up to `count` connections of the round; returns those with a lost peer, and True if it is the client.

        `is_lost(link, is_client)`: that side is known to be lost; only the other one is checked.
        """
        lost = []
        for _ in range(min(count, len(self._to_check))):
            link, previous = self._to_check.popitem()
            client, upstream = link.client if is_open(link) else None, link.upstream
            if client is None or upstream is None:
                continue
            up, down = client.received, upstream.received
            moved = link.active if link.seen == up + down else now
            still = now - moved >= STILL
            client_since = upstream_since = NEVER
            # While bytes flow, a peer that has sent some since the previous check has answered.
            if (still or up == previous.client_received) and not is_lost(link, True):
                client_since = unanswered_since(previous.client_since, self._read_state(client.fd), moved, now)
            if (still or down == previous.upstream_received) and not is_lost(link, False):
                upstream_since = unanswered_since(previous.upstream_since, self._read_state(upstream.fd), moved, now)
            if now - client_since >= self.timeout:
                lost.append((link, True))
            elif now - upstream_since >= self.timeout:
                lost.append((link, False))
            elif not still or client_since != NEVER or upstream_since != NEVER:
                self._checked[link] = PeerCheck(client_since, upstream_since, up, down)
        if not self._to_check:
            self._to_check = {}  # frees memory: an empty dictionary keeps its size
        return lost
