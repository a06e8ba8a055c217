"""The ring engine's records of one connection: a `Link` with its two `Side`s. Plain data."""

from __future__ import annotations

from relay.engines.contract import Handler
from relay.engines.link import CHANGED
from relay.engines.preread import PrereadBuffer

ARMED, CANCELLING = 1, 2  # `Side.armed`
NO_SUBMISSION = 1 << 62  # `Side.sent` of a side whose messages must not go straight to its peer


class Side:
    """One of a connection's two sockets, with the state of its direction: the bytes that come from it.

    `sent`, `word`, `received` and `short` are the reactor's. A side keeps its slot for good: after a close both wait
    until the side's last operation has completed, and are then used for another socket (see `slots`).
    """

    __slots__ = (
        "armed",
        "broken",
        "bulk",
        "busy",
        "dropping",
        "ended",
        "fd",
        "finished",
        "held",
        "link",
        "peer",
        "poll_in",
        "poll_out",
        "received",
        "sent",
        "short",
        "slot",
        "word",
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.link: Link | None = None  # None while the side is free or quarantined
        self.fd = -1  # -1 likewise
        self.peer: Side | None = None  # None until both sides are there: then bytes flow
        self.sent = NO_SUBMISSION  # number of the last submission that sent its bytes to the peer
        self.word = 0  # first word of such a submission: SEND_WORD and the peer's descriptor
        self.received = 0  # bytes
        self.short = False  # a send failed or fell short, and its completion has not been handled
        self.held: bytes | None = None  # bytes from the peer that this side did not take; b"": it takes none now
        self.busy = 0  # operations that have not completed
        self.armed = 0  # its receive operation: 0, ARMED or CANCELLING
        self.poll_in = 0  # 0, RESET, or an operation: READABLE or POLL_CANCELLING (see `interest`)
        self.poll_out = 0  # waits for room in the send buffer: 0, POLLED (an operation) or IN_EPOLL
        self.bulk = False  # polled, and read in large pieces with recv(2) (see `bulk`)
        self.ended = False  # FIN read, or `dropping`: later bytes are not passed on
        self.dropping = False  # cut, or its peer is lost, and its FIN has not come: its bytes are dropped
        self.finished = False  # FIN sent to this side, or the side is lost
        self.broken = False  # reset or lost: it takes nothing more


class Link:
    """A connection as the engine sees it."""

    __slots__ = ("active", "client", "deadline", "handler", "preread", "seen", "settled", "upstream")

    client: Side

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.upstream: Side | None = None
        self.settled: bool | None = None  # see `engines.link`
        self.preread: PrereadBuffer | None = None
        self.deadline = 0.0  # of the dial under way, monotonic seconds
        self.active = 0.0  # when a byte was last seen to have moved, monotonic seconds; 0: not pumping
        self.seen = CHANGED  # bytes received both ways when `active` was set
