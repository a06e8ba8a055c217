"""The contract between an engine and what stands above it.

An engine owns a worker's client sockets from accept to close and moves their bytes; it decides nothing. For every
connection it tells a `Handler` what happened (`Event`) and carries out the `Action` that it is answered with:

    accepted → Refuse | Wait | Preread | Dial  (Wait: the answer comes later, through `Engine.perform`)
    PREREAD → Preread (more) | Wait | Dial | Close, PREREAD_ENDED / PREREAD_TIMEOUT → Wait | Dial | Close
    CONNECTED → Pump, DIAL_FAILED / DIAL_TIMEOUT → Dial (the next address) | Close
    anything that ends it → Close

While it pumps, an engine honours half-close in both orders, passes a reset on as a reset, stops receiving from a side
whose peer does not take what was received, and ends a connection that was silent for too long. A side that is reset or
lost after its FIN has come truncates nothing: the other side gets all that came before the FIN, then FIN. What the
other one sends is dropped from then on, uncounted. If it ends as well, until a second after it has acknowledged
everything, and the first one was reset, the connection is FINISHED; else it ends with the event of the side that was
lost. That side itself is closed with RST, whatever the handler answers: it may come back. Nothing here assumes a
transport, a task or a file object per connection: an engine that keeps its connections in arrays fits as well.

A connection holds at most HELD_BOUND bytes, whatever its peers do. An engine may call a handler from within `perform`,
and a handler may call `perform` for another connection from within `advance`. An upstream that accepts and resets at
once may show as DIAL_FAILED or as CONNECTED and UPSTREAM_RESET.

What an engine does not do: resolve names, count, log, or choose anything.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from relay.address import Address

NEVER = float("inf")  # a time that does not come
HELD_BOUND = 256 * 1024  # bytes received and not yet taken by the other side, per connection


class Event(enum.Enum):
    """What happened to a connection. The value that goes with it is named behind it; None where nothing is."""

    __hash__ = object.__hash__  # by identity; Enum's own is written in Python, and events are looked up in tables

    PREREAD = "preread"  # everything received so far, bytes
    PREREAD_ENDED = "preread_ended"  # the same; the client has ended its direction, no more will come
    PREREAD_TIMEOUT = "preread_timeout"  # the same
    CONNECTED = "connected"  # local Address of the upstream side, or None if nobody asked for it
    DIAL_FAILED = "dial_failed"  # errno
    DIAL_TIMEOUT = "dial_timeout"
    FINISHED = "finished"  # both directions ended and everything was delivered
    CLIENT_RESET = "client_reset"  # in any phase
    UPSTREAM_RESET = "upstream_reset"
    CLIENT_LOST = "client_lost"  # errno: keepalive, user timeout, network gone
    UPSTREAM_LOST = "upstream_lost"  # errno
    IDLE = "idle"  # no byte in either direction for Timeouts.idle
    CLIENT_HALF_CLOSE = "client_half_close"  # the upstream ended, the client is silent and does not end
    UPSTREAM_HALF_CLOSE = "upstream_half_close"
    STOP = "stop"  # the engine was told to stop
    DRAINED = "drained"  # closed gracefully, see `Engine.close_gracefully`: the relay gets rid of its connections
    AGED = "aged"  # the same, see `Engine.close_expired`: it has lived for long enough
    DEFECT = "defect"  # an exception: a bug in the relay


class Refuse(NamedTuple):
    """Close the accepted socket at once, with a reset."""


class Wait(NamedTuple):
    """Keep the accepted socket as it is; somebody will call `Engine.perform`."""


class Preread(NamedTuple):
    """Receive from the client, `limit` bytes in all at most; answered with PREREAD whenever something has come.

    A further Preread in answer goes on with it. With `least`, PREREAD is told once there are so many bytes in all, or
    as many as there may be. The engine may tell PREREAD_TIMEOUT early, when all prereads take too much memory.

    What was received is the handler's from then on: it goes to the upstream as `Pump.first`, as far as it is to go
    there. It counts as received from the client. `timeout` seconds are for all that comes until another action (0:
    none).
    """

    limit: int
    timeout: float
    least: int = 0


class Dial(NamedTuple):
    """Connect to a literal address; answered with CONNECTED, DIAL_FAILED or DIAL_TIMEOUT. `timeout` is more than 0."""

    address: Address
    source: str  # local address to dial from, "" for the kernel's choice
    timeout: float  # seconds


class Pump(NamedTuple):
    """Pass bytes both ways until the connection ends.

    `first` goes to the upstream before anything else; it does not count as received from the client (what was preread
    has been counted).
    """

    first: bytes = b""


class Close(NamedTuple):
    """Close both sides (whichever are open).

    True sends RST and discards. False sends what the engine has received, then FIN; if the side does not take all of
    that at once, RST, so that a stream that was cut never looks complete.
    """

    reset_client: bool = False
    reset_upstream: bool = False


Action = Refuse | Wait | Preread | Dial | Pump | Close


class Linked(Protocol):
    """What an engine finds its own record of a connection by."""

    link: object | None  # the engine's own; None before and after


class Handler(Linked, Protocol):
    """What an engine needs of a connection."""

    expires_at: float  # monotonic seconds; from then on `Engine.close_expired` finds it. NEVER: it does not

    def advance(self, event: Event, value: object = None) -> Action:
        """Take the next step. After an answer of Refuse or Close the engine forgets the handler."""

    def moved(self, up: int, down: int) -> None:
        """Bytes received so far, from the client and from the upstream; called now and then."""

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        """`moved` for the last time and `advance` in one: for every event that can have no other answer than Close.

        Those are all that come from outside or by timeout once it was let in, but a preread's and a dial's own.
        """


Accepted = Callable[[Address], tuple[Handler, Action]]
"""Called for each accepted connection with the client's address."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; 0 turns one off. Checked a few times a second: a timeout never comes early, and up to a second late."""

    idle: float
    half_close: float


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """How long to bear with a peer that is silent, on both sides; in seconds.

    The keepalive ones are the kernel's socket options, 0 leaves its default (keepalive_idle: off). They may be set up
    to a second after a connection was established. `user_timeout` is the engine's own: a peer that has something to
    acknowledge, and does not answer for so long, is lost; 0: never. That is noticed up to a quarter of it later.
    """

    keepalive_idle: int = 60
    keepalive_interval: int = 15
    keepalive_count: int = 4
    user_timeout: float = 30.0


class Engine(Protocol):
    """One worker's engine. All calls come from the worker's event loop."""

    name: str

    def listen(self, sock: socket.socket, accepted: Accepted, *, shared: bool = False) -> None:
        """Accept on a bound, listening socket. The engine closes it in the end.

        `shared`: other processes accept from the same queue, or will; what is queued at the end is left to them.
        """

    def configure(self, timeouts: Timeouts, tcp: TcpOptions) -> None:
        """Timeouts of all connections from now on; options of those that are dialled or settled from now on.

        The options that a client's side inherits from its listening socket stay as they are.
        """

    def perform(self, handler: Handler, action: Action) -> None:
        """Carry out what a handler answered with late, after Wait. Nothing happens if the connection is gone."""

    def local_address(self, handler: Linked) -> Address | None:
        """The address that the handler's client connected to; None if the connection is gone."""

    def tick(self, now: float) -> bool:
        """Look at deadlines; the worker calls this twice a second or more often, with its monotonic clock.

        True: there is more to look at. It wants to be called again as soon as what else is waiting has had its turn.
        """

    def unlisten(self, sock: socket.socket) -> None:
        """Let nobody new in there, and close the listening socket.

        Whoever begins to connect is not answered from now on, on no copy of the socket; whoever has begun is accepted
        within a second, after which the socket is closed, in a tick. So nobody gets a connection that is reset. (Where
        the kernel cannot do that, what is queued is accepted, and the socket closed at once.) A shared one is closed at
        once, and its queue left to the others. Nothing happens if the engine does not listen there (any more).
        """

    def stop_listening(self) -> None:
        """Do so for all listening sockets."""

    def close_gracefully(self, count: int, event: Event) -> int:
        """Begin to end the `count` oldest connections gracefully, by the order of accepting; returns how many it were.

        Those that pump are meant, and are not being closed yet. The client is told first, so that nothing is lost of
        what it sends: it gets what was received for it, and then FIN, as if the upstream had sent one. Its own bytes go
        on to the upstream, and so does its FIN; what the upstream sends meanwhile is dropped, uncounted. The connection
        is over when the upstream has ended as well, or has everything. If that takes longer than a few seconds, or if
        one of the sides is reset, then it is over too. Whichever way, the handler is told `event` and nothing else
        (but STOP and DEFECT, which come first if they come), and its answer is carried out.
        """

    def close_expired(self, count: int, event: Event) -> int:
        """The same for at most `count` of those whose `Handler.expires_at` has passed, the earliest first.

        Returns how many of them are left. It may take a second until such a connection is found.
        """

    def stop(self) -> None:
        """Tell every connection STOP and carry out its answer."""

    @property
    def connections(self) -> int:
        """Connections accepted and not yet closed."""

    @property
    def held(self) -> int:
        """Bytes received and not yet taken by the other side, all connections together."""

    @property
    def accept_pauses(self) -> int:
        """How often accepting was paused because descriptors or memory ran out."""

    def close(self) -> None:
        """Stop, close everything and leave the event loop."""
