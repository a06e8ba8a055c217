"""The fields of an engine's connection record (`Link`, `Side`) that the code shared by all engines uses."""

from __future__ import annotations

from typing import Protocol, TypeVar

from relay.engines.contract import Handler
from relay.engines.preread import PrereadBuffer

CHANGED = -1  # value of `Link.seen` after activity that the byte counts do not show


class Side(Protocol):
    """One of a connection's two sockets."""

    fd: int
    received: int  # bytes
    ended: bool  # its FIN was read, or `dropping`
    dropping: bool  # its FIN has not come, but it counts as `ended`: what it sends is dropped
    finished: bool  # FIN was sent to it, or it is lost


class Link(Protocol):
    """A connection as an engine sees it."""

    handler: Handler
    active: float  # monotonic seconds when activity was last seen; 0: not pumping
    seen: int  # bytes received from both sides when `active` was set; CHANGED forces an update at the next check
    settled: bool | None  # None: younger than a tick; False: older, not pumping; True: `_settle` was called
    deadline: float  # monotonic seconds, of the dial or preread under way; NEVER while waiting for the handler
    preread: PrereadBuffer | None  # None: no preread under way

    @property
    def client(self) -> Side: ...
    @property
    def upstream(self) -> Side | None: ...


L = TypeVar("L", bound=Link)
