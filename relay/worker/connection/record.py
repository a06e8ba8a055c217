"""The record of one connection, and of its listener. Plain data; the state machine is in `transitions`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.core.customers import NOBODY
from relay.engines.contract import NEVER

if TYPE_CHECKING:  # the stages; most of them refer to this record
    from relay.address import Address
    from relay.core.balance import Balance
    from relay.core.client_hello import ClientHello
    from relay.core.limits import Lease
    from relay.core.proxy_header import ProxyHeader
    from relay.engines.contract import Action, Handler, Linked, SharedTimeouts
    from relay.outcome import Outcome
    from relay.worker.connection.accounting import Accounting, RouteAccounting
    from relay.worker.connection.admission import Admission
    from relay.worker.connection.customers import Customers
    from relay.worker.connection.dial_queue import DialQueue
    from relay.worker.connection.preread import PrereadFilter
    from relay.worker.connection.source_ports import SourcePorts
    from relay.worker.connection.target import Target
    from relay.worker.connection.upstreams import Route


class State(enum.Enum):
    """The state of a connection."""

    __hash__ = object.__hash__  # by identity: Enum's own hashes the name, in Python, at each table look-up

    PREREADING = "prereading"
    ROUTING = "routing"
    RESOLVING = "resolving"
    QUEUED = "queued"
    DIALING = "dialing"
    PUMPING = "pumping"
    CLOSED = "closed"


class Found(enum.Enum):
    """The result of a step; looked up in the tables like an event."""

    __hash__ = object.__hash__

    REFUSED = "refused"
    READ = "read"  # the preread is complete, and the connection is let through
    ADDRESS = "address"  # an upstream address to dial
    ANOTHER = "another"  # another upstream address to dial, after a failed dial
    UNRESOLVED = "unresolved"  # the upstream's name has not been resolved yet
    RESOLVED = "resolved"
    EXHAUSTED = "exhausted"  # no address is left to try, or the dial queue has no turn left
    QUEUED = "queued"  # the dial has to wait for its turn
    TURN = "turn"  # the turn to dial has come
    NO_PORT = "no_port"  # no source address has a port left for the target


# Looked up once: on Python 3.11 each access to an enumeration's member goes through its metaclass.
_ROUTING, _RESOLVING, _QUEUED = State.ROUTING, State.RESOLVING, State.QUEUED


@dataclass(slots=True)
class Frontend:
    """What all connections of one listener, or of one of its routes, have in common.

    A connection begins with its listener's; the preread may give it that of a route.
    """

    index: int
    name: str
    admission: Admission
    preread: PrereadFilter[Frontend] | None  # None: nothing is read before the dial
    send_proxy: int  # version of the PROXY protocol towards the upstream, 0: none
    local_address: Callable[[Linked], Address | None]  # the engine's method: the address that the client connected to
    route: Route | None  # None: the listener has no upstream of its own
    balance: Balance
    source_ports: SourcePorts
    dial_queue: DialQueue[ConnectionRecord] | None  # None: dials are not rate-limited
    resume: Callable[[ConnectionRecord, Found], None]  # `transitions.resume`, for the end of a wait
    perform: Callable[[Handler, Action], None]  # the engine's method, for the action after a wait
    accounting: Accounting | RouteAccounting
    clock: Callable[[], float]  # monotonic seconds
    dial_timeout: float = 0.0  # seconds for all dials of one connection together; 0: no limit
    lifetime: Callable[[], float] | None = None  # draws the seconds that a connection may live; None: no limit
    timeouts: SharedTimeouts | None = None  # None: the engine's
    customers: Customers | None = None  # None: clients are not told apart
    route_name: str = ""  # for the access log; "": the listener's own


class ConnectionRecord:
    """The fields of one accepted connection. `transitions.Connection` adds the methods that an engine calls."""

    __slots__ = (
        "bytes_down",
        "bytes_up",
        "client",
        "connected",
        "customer",
        "dialed",
        "error",
        "expires_at",
        "failure",
        "first",
        "frontend",
        "header",
        "hello",
        "lease",
        "link",
        "offset",
        "outcome",
        "source",
        "source_number",
        "started",
        "state",
        "target",
        "targets",
        "timeouts",
    )

    def __init__(self, frontend: Frontend, client: Address) -> None:
        self.frontend = frontend
        self.client = client
        self.timeouts = frontend.timeouts
        self.state = _ROUTING
        self.started = frontend.clock()
        self.link: object | None = None
        self.lease: Lease | None = None
        self.customer = NOBODY  # slot of the customer whose this connection is
        self.first = b""  # preread bytes that are still to be sent to the upstream
        self.hello: ClientHello | None = None
        self.header: ProxyHeader | None = None
        self.offset: int | None = 0  # of the first preread byte for the upstream; None: a PROXY header may come first
        self.targets: list[Target] | None = None  # still to be tried, the next one last
        self.target: Target | None = None  # being tried, or connected to
        self.source_number = -1  # of the source address whose port towards the target is counted; -1: none
        self.dialed = 0.0
        self.connected = 0.0  # monotonic seconds; 0: never
        self.expires_at = NEVER  # monotonic seconds: when the connection reaches timeouts.max_age
        self.failure: Outcome | None = None  # the outcome, unless something else ends the connection
        self.error: object = None  # errno of the last failure, an int, if that ends the connection
        self.outcome: Outcome | None = None  # None until the connection is accounted for
        self.source: Address | None = None  # local address towards the upstream
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def customer_name(self) -> str:
        """The name of the customer whose this connection is; empty if it is nobody's."""
        customers = self.frontend.customers
        return customers.name(self.customer) if customers is not None and self.customer != NOBODY else ""

    @property
    def waiting(self) -> bool:
        """True while the connection waits for an upstream address or for its turn to dial."""
        return self.state is _RESOLVING or self.state is _QUEUED

    def moved(self, up: int, down: int) -> None:
        """Account for the bytes received so far from the client (`up`) and from the upstream (`down`)."""
        frontend = self.frontend
        frontend.accounting.moved(frontend.index, up - self.bytes_up, down - self.bytes_down)
        if self.customer != NOBODY and frontend.customers is not None:
            frontend.customers.moved(self.customer, up - self.bytes_up, down - self.bytes_down)
        self.bytes_up = up
        self.bytes_down = down
