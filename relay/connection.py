"""One connection, from accept to close, as a transition table: what happened, in which state, what is done about it.

    accept → admit → sniff → route → dial → pump → account → close

Reading the table from top to bottom is reading that line. Each entry names the next state and the step that is taken; a
step is a plain synchronous function that touches no socket. It returns either an `Action` for the engine, or a `Found`
(what the step found out), which is looked up in the table at once. An entry that leads to CLOSED has the engine's last
action in place of a step, and the `Outcome` beside it; `steps.close` is the only place that ends a connection, and no
entry leads out of CLOSED: so there is exactly one outcome.

What this file does not do: move bytes, keep timers, or know which engine it runs on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay import steps
from relay.account import Ledger
from relay.address import Address
from relay.admit import REFUSAL_OUTCOMES, Admission, Denied
from relay.core.balance import Balance
from relay.core.client_hello import ClientHello
from relay.core.limits import Lease, Refusal
from relay.core.proxy_header import ProxyHeader
from relay.dial import Target
from relay.engines.contract import NEVER, Action, Close, Event
from relay.outcome import Outcome
from relay.pacing import Pacer
from relay.sniff import Gate
from relay.sources import Sources
from relay.steps import CLOSE, REFUSE, RESET_BOTH, RESET_CLIENT, RESET_UPSTREAM, Found, Step
from relay.upstreams import Route


class State(enum.Enum):
    """Where a connection stands."""

    __hash__ = object.__hash__  # by identity: Enum's own hashes the name, in Python, at each look-up in the table

    PREREADING = "preread"
    ROUTING = "routing"
    RESOLVING = "resolving"
    QUEUED = "queued"
    DIALING = "dialing"
    PUMPING = "pumping"
    CLOSED = "closed"


# Read from the classes once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
_PREREADING, _ROUTING, _RESOLVING = State.PREREADING, State.ROUTING, State.RESOLVING
_QUEUED, _DIALING, _PUMPING, _CLOSED = State.QUEUED, State.DIALING, State.PUMPING, State.CLOSED
_REFUSED, _READ, _ADDRESS = Found.REFUSED, Found.READ, Found.ADDRESS


@dataclass(slots=True)
class Frontend:
    """What the connections of one listener share."""

    index: int
    name: str
    admission: Admission
    gate: Gate | None  # None: what clients say is not read
    send_proxy: int  # version of the PROXY protocol towards the upstream, 0: none
    local_address: Callable[[Connection], Address | None]  # the engine's: where its client connected to
    route: Route
    balance: Balance
    sources: Sources
    pacer: Pacer[Connection] | None  # None: dials begin at once
    perform: Callable[[Connection, Action], None]  # the engine's, for answers that come late
    ledger: Ledger
    clock: Callable[[], float]  # monotonic seconds
    dial_timeout: float = 0.0  # seconds for all dials of one connection together; 0: no limit
    ages: Callable[[], float] | None = None  # seconds that a connection may live; None: for ever


class Connection:
    """One accepted connection. Implements `relay.engines.contract.Handler`."""

    __slots__ = (
        "bytes_down",
        "bytes_up",
        "client",
        "connected",
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
        "port_of",
        "source",
        "started",
        "state",
        "target",
        "targets",
    )

    def __init__(self, frontend: Frontend, client: Address) -> None:
        self.frontend = frontend
        self.client = client
        self.state = _ROUTING
        self.started = frontend.clock()
        self.link: object | None = None
        self.lease: Lease | None = None
        self.first = b""  # read before the upstream was connected, to be passed on
        self.hello: ClientHello | None = None
        self.header: ProxyHeader | None = None
        self.offset: int | None = 0  # where what is to be passed on begins; None: a PROXY header may be before it
        self.targets: list[Target] | None = None  # still to be tried, the next one last
        self.target: Target | None = None  # being tried, or connected to
        self.port_of = -1  # number of the source address that it holds a port of, towards the target; -1: none
        self.dialed = 0.0
        self.connected = 0.0  # monotonic seconds; 0: never
        self.expires_at = NEVER  # monotonic seconds: when it has lived for long enough
        self.failure: Outcome | None = None  # of the last attempt to dial
        self.error: object = None  # errno of what failed last, an int, if that is why it ends
        self.outcome: Outcome | None = None  # once it is accounted for
        self.source: Address | None = None  # local address towards the upstream
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def waiting(self) -> bool:
        """Whether it waits for an address, or for its turn."""
        return self.state is _RESOLVING or self.state is _QUEUED

    def advance(self, event: Event | Found, value: object = None) -> Action:
        """Take the step that the table names, and those that follow from it."""
        while True:
            self.state, step, outcome = _BY_STATE[self.state][event]
            if self.state is _CLOSED:
                steps.close(self, outcome, 0, 0)
                return step  # type: ignore[no-any-return]  # an entry that leads to CLOSED has an action there
            result = step(self, value, outcome)
            if result is _READ:
                return _go_on(self)
            if type(result) is not Found:
                return result  # type: ignore[no-any-return]  # isinstance() would tell mypy, at four times the cost
            event, value = result, None

    def moved(self, up: int, down: int) -> None:
        """Bytes received so far from the client and from the upstream."""
        self.frontend.ledger.moved(self.frontend.index, up - self.bytes_up, down - self.bytes_down)
        self.bytes_up = up
        self.bytes_down = down

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        """The last of both in one: every event that ends a connection leads to CLOSED at once."""
        self.state, action, outcome = _BY_STATE[self.state][event]
        more_up, more_down = up - self.bytes_up, down - self.bytes_down
        self.bytes_up, self.bytes_down = up, down
        self.error = value
        steps.close(self, outcome, more_up, more_down)
        return action  # type: ignore[no-any-return]  # as above


def _go_on(connection: Connection) -> Action:
    """What the table says of READ and of ADDRESS, without looking it up: nearly all go this way."""
    connection.state = _ROUTING
    found = steps.route(connection, None, None)
    if found is not _ADDRESS:
        return connection.advance(found)
    connection.state = _DIALING
    action = steps.dial(connection, None, None)
    if type(action) is Found:
        return connection.advance(action)
    return action  # type: ignore[return-value]  # not a Found: mypy does not narrow the rest by `type() is`


Acceptor = Callable[[Address], tuple[Connection, Action]]


def accept(frontend: Frontend, client: Address) -> tuple[Connection, Action]:
    """A connection was accepted: its record, and what to do with it."""
    frontend.ledger.accepted(frontend.index)
    connection = Connection(frontend, client)
    try:
        gate = frontend.gate
        if gate is not None and gate.reads_proxy:
            connection.offset = None
            result: Lease | Refusal | Denied = frontend.admission.admit_unknown(frontend.index)
        else:
            result = frontend.admission.admit(frontend.index, client)
        if type(result) is not Lease:
            assert not isinstance(result, Lease)
            connection.failure = REFUSAL_OUTCOMES[result]
            return connection, connection.advance(_REFUSED)
        connection.lease = result
        if gate is not None:
            connection.state = _PREREADING
            return connection, gate.sniff
        return connection, _go_on(connection)
    except BaseException:
        # The engine closes the socket but has no connection to tell of the defect.
        connection.advance(Event.DEFECT)
        raise


TRANSITIONS: dict[tuple[State, Event | Found], tuple[State, Step | Action, Outcome | None]] = {
    # in this state, when this happened      → be in this state, take this step, or end with this action and outcome
    (_ROUTING, Found.REFUSED): (_CLOSED, REFUSE, None),  # what was in the way is its outcome
    (_PREREADING, Event.PREREAD): (_PREREADING, steps.read_first, None),
    (_PREREADING, Event.PREREAD_ENDED): (_CLOSED, RESET_BOTH, Outcome.CLIENT_HELLO_ABORT),
    (_PREREADING, Event.PREREAD_TIMEOUT): (_CLOSED, RESET_BOTH, Outcome.CLIENT_HELLO_TIMEOUT),
    (_PREREADING, Found.REFUSED): (_CLOSED, RESET_BOTH, None),
    (_PREREADING, Found.READ): (_ROUTING, steps.route, None),
    (_ROUTING, Found.ADDRESS): (_DIALING, steps.dial, None),
    (_ROUTING, Found.UNRESOLVED): (_RESOLVING, steps.wait, None),
    (_ROUTING, Found.EXHAUSTED): (_CLOSED, RESET_BOTH, None),  # the last failure is its outcome
    (_RESOLVING, Found.RESOLVED): (_ROUTING, steps.route, None),
    (_ROUTING, Found.ANOTHER): (_DIALING, steps.redial, None),
    (_DIALING, Found.QUEUED): (_QUEUED, steps.queue, None),
    (_DIALING, Found.EXHAUSTED): (_CLOSED, RESET_BOTH, None),  # no turn for it, or too late; its outcome says which
    (_DIALING, Found.NO_PORT): (_ROUTING, steps.next_target, None),
    (_QUEUED, Found.TURN): (_DIALING, steps.take_turn, None),
    (_DIALING, Event.CONNECTED): (_PUMPING, steps.pump, None),
    (_DIALING, Event.DIAL_FAILED): (_ROUTING, steps.try_next, None),  # the errno says which outcome
    (_DIALING, Event.DIAL_TIMEOUT): (_ROUTING, steps.try_next, Outcome.DIAL_TIMEOUT),
    # The ends, while data flows.
    (_PUMPING, Event.FINISHED): (_CLOSED, CLOSE, Outcome.OK),
    (_PUMPING, Event.CLIENT_RESET): (_CLOSED, RESET_UPSTREAM, Outcome.CLIENT_RESET),
    (_PUMPING, Event.UPSTREAM_RESET): (_CLOSED, RESET_CLIENT, Outcome.UPSTREAM_RESET),
    (_PUMPING, Event.CLIENT_LOST): (_CLOSED, RESET_BOTH, Outcome.CLIENT_LOST),
    (_PUMPING, Event.UPSTREAM_LOST): (_CLOSED, RESET_BOTH, Outcome.UPSTREAM_LOST),
    (_PUMPING, Event.IDLE): (_CLOSED, RESET_BOTH, Outcome.IDLE_TIMEOUT),
    (_PUMPING, Event.CLIENT_HALF_CLOSE): (_CLOSED, RESET_BOTH, Outcome.CLIENT_HALF_CLOSE_TIMEOUT),
    (_PUMPING, Event.UPSTREAM_HALF_CLOSE): (_CLOSED, RESET_BOTH, Outcome.UPSTREAM_HALF_CLOSE_TIMEOUT),
    # Told to stop: what was received is delivered, then FIN.
    (_PUMPING, Event.STOP): (_CLOSED, CLOSE, Outcome.SHUTDOWN),
    # Retired: what was received for the client has been delivered, and the upstream has what the client sent.
    (_PUMPING, Event.DRAINED): (_CLOSED, CLOSE, Outcome.DRAINED),
    (_PUMPING, Event.AGED): (_CLOSED, CLOSE, Outcome.MAX_AGE),
    (_PUMPING, Event.DEFECT): (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR),
    (_CLOSED, Event.DEFECT): (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR),
}
for _state in (_PREREADING, _ROUTING, _RESOLVING, _QUEUED, _DIALING):
    # The client went away, or the relay has to, before there was an upstream.
    _abort = Outcome.CLIENT_HELLO_ABORT if _state is _PREREADING else Outcome.CLIENT_ABORT
    TRANSITIONS[_state, Event.CLIENT_RESET] = (_CLOSED, RESET_UPSTREAM, _abort)
    TRANSITIONS[_state, Event.CLIENT_LOST] = (_CLOSED, RESET_BOTH, _abort)
    TRANSITIONS[_state, Event.STOP] = (_CLOSED, RESET_BOTH, Outcome.SHUTDOWN_DIAL)
    TRANSITIONS[_state, Event.DEFECT] = (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR)
# The same by state first: without a tuple to make and to hash for each step.
_BY_STATE: dict[State, dict[Event | Found, tuple[State, Any, Outcome | None]]] = {state: {} for state in State}
for (_state, _event), _entry in TRANSITIONS.items():
    _BY_STATE[_state][_event] = _entry
