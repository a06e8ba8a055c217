"""The contract between an engine and the code above it.

An engine owns a worker's client sockets from accept to close, dials upstreams, and moves bytes between the two. It
makes no decisions: for each connection it reports what happened (`Event`) to a `Handler`, and carries out the `Action`
that the handler returns:

    accepted                        → Preread | Dial | Wait | Refuse
    PREREAD                         → Preread (more bytes) | Dial | Wait | Close | Refuse
    PREREAD_ENDED, PREREAD_TIMEOUT  → Dial | Wait | Close | Refuse
    CONNECTED                       → Pump | Close
    DIAL_FAILED, DIAL_TIMEOUT       → Dial (the next address) | Wait | Close
    every other event               → Close

A handler that returns Wait passes its next action to `Engine.perform` later.

While it pumps, an engine does four things without asking:

- half-close: it forwards FIN in both directions independently, whichever side sends it first;
- reset: it forwards a reset as a reset, never as a clean end;
- backpressure: it stops receiving from a side whose peer does not take what was received;
- timeouts: it ends a connection that is idle, or half-closed and silent, for too long.

A side may be reset or lost after its FIN was received. Nothing is truncated then: the other side, the survivor, gets
everything that came before the FIN, then FIN. Whatever the survivor sends from then on is dropped and not counted. If
the failed side was reset, and the survivor ends within a second after it has acknowledged everything, the connection is
FINISHED; otherwise it ends with the failed side's RESET or LOST event. The failed side's own socket is closed with RST
whatever the handler returns, since its host may come back.

A connection holds at most HELD_BOUND bytes, whatever its peers do. Calls may nest: an engine may call a handler from
within `perform`, and a handler may call `perform` for another connection from within `advance`. An upstream that
accepts and resets at once is reported either as DIAL_FAILED, or as CONNECTED followed by UPSTREAM_RESET.

An engine does not resolve names, keep statistics, write the access log, or choose an upstream. The contract assumes no
transport, task or file object per connection: an engine that keeps its connections in arrays fits as well.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.address import Address

NEVER = float("inf")  # a point in time that is never reached
HELD_BOUND = 256 * 1024  # bytes received and not yet taken by the other side, per connection


class Event(enum.Enum):
    """What happened to a connection. The comment names the value passed with the event; without one it is None."""

    __hash__ = object.__hash__  # by identity; Enum's own is written in Python, and events are looked up in tables

    PREREAD = "preread"  # bytes: everything received so far
    PREREAD_ENDED = "preread_ended"  # the same bytes; the client has sent FIN, no more will come
    PREREAD_TIMEOUT = "preread_timeout"  # the same bytes
    CONNECTED = "connected"  # Address: the upstream socket's local address, None unless source reports are enabled
    DIAL_FAILED = "dial_failed"  # int: errno
    DIAL_TIMEOUT = "dial_timeout"
    FINISHED = "finished"  # both directions ended with FIN and everything was delivered
    CLIENT_RESET = "client_reset"  # may come in any phase
    UPSTREAM_RESET = "upstream_reset"
    CLIENT_LOST = "client_lost"  # int: errno of keepalive, user timeout, or an unreachable network
    UPSTREAM_LOST = "upstream_lost"  # int: errno
    IDLE = "idle"  # no byte in either direction for Timeouts.idle
    CLIENT_HALF_CLOSE = "client_half_close"  # the upstream sent FIN; the client is silent and sends none
    UPSTREAM_HALF_CLOSE = "upstream_half_close"  # the client sent FIN; the upstream is silent and sends none
    STOP = "stop"  # `Engine.stop` was called
    DRAINED = "drained"  # closed by `Engine.close_gracefully`: the relay is draining
    AGED = "aged"  # closed by `Engine.close_expired`: the connection reached its maximum age
    DEFECT = "defect"  # an exception was raised: a bug in the relay


class Refuse(NamedTuple):
    """Close the accepted socket at once, with RST."""


class Wait(NamedTuple):
    """Leave the accepted socket alone until `Engine.perform` is called for this connection."""


class Preread(NamedTuple):
    """Receive from the client before an upstream is dialled; PREREAD reports what has come so far.

    Returning Preread again continues the same preread; its timeout keeps running. With `least`, PREREAD is reported
    only once `least` or `limit` bytes have come, whichever is fewer. PREREAD_TIMEOUT may come early when unfinished
    prereads of all connections together take too much memory.

    The engine counts the bytes as received from the client, and leaves them to the handler: whatever belongs upstream
    has to be passed on as `Pump.first`.
    """

    limit: int  # most bytes to receive in all
    timeout: float  # seconds from the first Preread until another action; 0: no timeout
    least: int = 0  # bytes in all below which PREREAD is not reported


class Dial(NamedTuple):
    """Connect to a literal address; the result is CONNECTED, DIAL_FAILED or DIAL_TIMEOUT."""

    address: Address
    source: str  # local address to dial from; "" for the kernel's choice
    timeout: float  # seconds, more than 0


class Pump(NamedTuple):
    """Pass bytes both ways until the connection ends.

    `first` goes to the upstream before anything else. It is not counted again: prereading has counted it.
    """

    first: bytes = b""


class Close(NamedTuple):
    """Close whichever sides are open.

    A side with True is closed with RST, and what is held for it is discarded. A side with False gets what the engine
    holds for it, then FIN; if the side does not take all of that at once, it gets RST, so that a truncated stream never
    looks complete.
    """

    reset_client: bool = False
    reset_upstream: bool = False


Action = Refuse | Wait | Preread | Dial | Pump | Close


class Linked(Protocol):
    """An object that carries the engine's reference to its own record of a connection."""

    link: object | None  # set by the engine; None before the accept and after the close


class Handler(Linked, Protocol):
    """The callbacks and fields that an engine needs for each connection."""

    expires_at: float  # monotonic seconds from which `Engine.close_expired` may close the connection, or NEVER
    timeouts: SharedTimeouts | None  # in place of the engine's; None: the engine's

    def advance(self, event: Event, value: object = None) -> Action:
        """Return the action for an event. After returning Refuse or Close, the handler is forgotten by the engine."""

    def moved(self, up: int, down: int) -> None:
        """Take the totals of bytes received so far, from the client and from the upstream.

        Called about once a second while bytes flow.
        """

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        """Do a last `moved` and an `advance` in one call, for an event that can only be answered with Close.

        Those are all events but the results of a preread or a dial, and DEFECT, which go to `advance`.
        """


Accepted = Callable[[Address], tuple[Handler, Action]]
"""Called for each accepted connection with the client's address; returns its handler and first action."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds; 0 turns one off. A timeout never fires early, and at most a second late."""

    idle: float
    half_close: float


class SharedTimeouts:
    """Timeouts that many connections share, and that change for all of them at once: those of one listener.

    `idle` and `half_close` are in seconds, NEVER if off. While `ages` is False, no connection counts as expired.
    """

    __slots__ = ("ages", "half_close", "idle")

    def __init__(self, timeouts: Timeouts, *, ages: bool = True) -> None:
        self.set(timeouts, ages=ages)

    def set(self, timeouts: Timeouts, *, ages: bool = True) -> None:
        """Replace them, from the next check on; `Engine.configure` makes that at once."""
        self.idle = timeouts.idle or NEVER
        self.half_close = timeouts.half_close or NEVER
        self.ages = ages


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """When a silent peer is given up, on both sides; in seconds, `keepalive_count` in probes.

    The keepalive fields are the kernel's socket options, set up to a second after a connection is established; 0 leaves
    the kernel's default, and keepalive_idle = 0 turns keepalive off. `user_timeout` is implemented by the engine: a
    peer that has data to acknowledge, and has not answered for this long, is lost; 0 turns that off. The check may be
    late by a quarter of the timeout.
    """

    keepalive_idle: int = 60
    keepalive_interval: int = 15
    keepalive_count: int = 4
    user_timeout: float = 30.0


class Engine(Protocol):
    """One worker's engine. All calls are made from the worker's event loop."""

    name: str

    def listen(self, sock: socket.socket, accepted: Accepted, *, shared: bool = False) -> None:
        """Accept on a bound, listening socket. The engine owns the socket from now on, and closes it.

        `shared`: other processes accept, or will accept, from the same accept queue; connections still queued when the
        engine stops listening are left to them.
        """

    def configure(self, timeouts: Timeouts, tcp: TcpOptions, others: Sequence[Timeouts] = ()) -> None:
        """Replace the timeouts of all connections that share none, and the socket options of later ones.

        `others` are the timeouts that handlers share now: connections are checked as often as the shortest demands.
        Socket options apply to upstream sockets dialled from now on; those of keepalive also to connections so young
        that they are not set yet. What client sockets inherit from their listening socket stays as it is.
        """

    def perform(self, handler: Handler, action: Action) -> None:
        """Carry out the action that a handler decided on after Wait. Does nothing if the connection is gone."""

    def local_address(self, handler: Linked) -> Address | None:
        """The address that the handler's client connected to; None if the connection is gone."""

    def tick(self, now: float) -> bool:
        """Check deadlines, in batches; called with the worker's monotonic clock, twice a second or more often.

        True: the check is not finished. Call again as soon as other callbacks have had their turn.
        """

    def unlisten(self, sock: socket.socket) -> None:
        """Stop accepting new connections on a listening socket, then close it, without resetting any client.

        From now on the kernel drops every SYN, on all copies of the socket. Handshakes already begun get a second to
        complete and are accepted; then a tick closes the socket. If the kernel cannot drop SYNs, what is queued is
        accepted and the socket closed at once. A shared socket is closed at once too, and its queue left to the other
        processes. Does nothing if the engine does not listen on the socket (any more).
        """

    def stop_listening(self) -> None:
        """`unlisten` every listening socket."""

    def close_gracefully(self, count: int, event: Event) -> int:
        """Begin a graceful close of the `count` oldest connections, in accept order; returns how many were begun.

        Connections that do not pump yet, or are closing gracefully already, are passed over. The client gets FIN first,
        so that nothing it sends is lost: what was received for it, then FIN, as if the upstream had sent one. The
        client's own bytes, and its FIN, still go to the upstream; what the upstream sends meanwhile is dropped and not
        counted. The connection is closed once the client has sent FIN, and the upstream has sent FIN as well or has
        acknowledged everything; after a few seconds at the latest, or when a side is reset. In every case the handler
        gets `event` and no other, and its Close is carried out. Only STOP and DEFECT may come instead, if they come
        first.
        """

    def close_expired(self, count: int, event: Event) -> int:
        """Begin a graceful close of up to `count` connections past their `Handler.expires_at`, earliest first.

        Returns how many expired connections are left. An expired connection may be found up to a second late.
        """

    def stop(self) -> None:
        """Report STOP to every connection, and carry out the answers."""

    @property
    def connections(self) -> int:
        """Connections accepted and not yet closed."""

    @property
    def held(self) -> int:
        """Bytes received and not yet taken by the other side, over all connections."""

    @property
    def accept_pauses(self) -> int:
        """How often accepting was paused because descriptors or memory ran out."""

    def close(self) -> None:
        """Stop, close everything and leave the event loop."""
