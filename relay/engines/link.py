"""What the parts that all engines share need of an engine's record of a connection."""

from __future__ import annotations

from typing import Protocol, TypeVar

from relay.engines.contract import Handler
from relay.engines.preread import PrereadBuffer

CHANGED = -1  # for `Link.seen`: something moved that the byte counts do not show


class Side(Protocol):
    """One of a connection's two sockets."""

    fd: int
    received: int  # bytes
    ended: bool  # FIN read, or `dropping`
    dropping: bool  # `ended`, though its FIN has not come: what comes is dropped
    finished: bool  # FIN sent


class Link(Protocol):
    """A connection as an engine sees it."""

    handler: Handler
    active: float  # when a byte was last seen to have moved, monotonic seconds; 0: not pumping
    seen: int  # bytes received both ways when `active` was set
    settled: bool | None  # seen by a tick: None not yet, False with no bytes flowing yet, True and settled
    deadline: float  # of the dial or preread under way, monotonic seconds; infinite while the handler is waited for
    preread: PrereadBuffer | None

    @property
    def client(self) -> Side: ...
    @property
    def upstream(self) -> Side | None: ...


L = TypeVar("L", bound=Link)
