"""The ring engine's records of one connection: a `Link` with its two `Side`s. Plain data."""

from __future__ import annotations

from relay.engines.contract import Handler
from relay.engines.link import CHANGED
from relay.engines.preread import PrereadBuffer

ARMED, CANCELLING = 1, 2  # `Side.armed`
NO_SUBMISSION = 1 << 62  # `Side.sent` of a side whose messages must not go straight to its peer


class Side:
    """One of a connection's two sockets, with what is known of its direction: the bytes that come from it.

    `sent`, `word`, `received` and `short` are the reactor's. A side has its slot for good: a closed one rests in it
    until the last of its operations has reported, and is then used for another socket (see `slots`).
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
        self.link: Link | None = None  # None while it is free, or rests
        self.fd = -1  # the same
        self.peer: Side | None = None  # None until both sides are there: then bytes flow
        self.sent = NO_SUBMISSION  # number of the last submission that sent its bytes on
        self.word = 0  # first word of such a submission: SEND_WORD and the peer's descriptor
        self.received = 0  # bytes
        self.short = False  # a send failed or fell short, and its completion has not been handled
        self.held: bytes | None = None  # not yet taken by this side; b"": nothing, but it takes nothing now
        self.busy = 0  # operations that have yet to report
        self.armed = 0  # a receive is one of them, ARMED or CANCELLING
        self.poll_in = 0  # RESET, or an operation: READABLE or POLL_CANCELLING (see `interest`)
        self.poll_out = 0  # it is waited for room: POLLED (an operation) or IN_EPOLL
        self.bulk = False  # is read in large pieces, at once, when a poll says that there is something
        self.ended = False  # FIN read, or `dropping`: what comes later is not passed on
        self.dropping = False  # cut, or its peer is lost, and its FIN has not come: what comes is dropped
        self.finished = False  # FIN sent, or lost
        self.broken = False  # reset or lost: nothing more can be given to it


class Link:
    """A connection as the engine sees it."""

    __slots__ = ("active", "client", "deadline", "handler", "preread", "seen", "settled", "upstream")

    client: Side

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.upstream: Side | None = None
        self.settled: bool | None = None  # see `life.Link`
        self.preread: PrereadBuffer | None = None
        self.deadline = 0.0  # of the dial under way, monotonic seconds
        self.active = 0.0  # when a byte was last seen to have moved; 0: not pumping
        self.seen = CHANGED  # bytes received both ways when `active` was set
