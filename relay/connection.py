"""One connection, from accept to close, as a transition table: what happened, in which state, what is done about it.

    accept → admit → route → dial → pump → account → close

Reading the table from top to bottom is reading that line. Each entry names the next state and the step that is taken; a
step is a plain synchronous function that touches no socket. It returns either an `Action` for the engine, or a `Found`
(what the step found out), which is looked up in the table at once. An entry that leads to CLOSED has the engine's last
action in place of a step, and the `Outcome` beside it; `_close` is the only place that ends a connection, and no entry
leads out of CLOSED: so there is exactly one outcome.

What this file does not do: move bytes, keep timers, or know which engine it runs on.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.account import Ledger
from relay.admit import REFUSAL_OUTCOMES, Admission
from relay.core.limits import Lease
from relay.dial import DIAL_OUTCOMES, Route, Target
from relay.engines.contract import Action, Address, Close, Event, Pump, Refuse, Wait
from relay.outcome import Outcome
from relay.resolve import Lookup

logger = logging.getLogger("relay.connection")


class State(enum.Enum):
    """Where a connection stands."""

    __hash__ = object.__hash__  # by identity: Enum's own hashes the name, in Python, at each look-up in the table

    ROUTING = "routing"
    RESOLVING = "resolving"
    DIALING = "dialing"
    PUMPING = "pumping"
    CLOSED = "closed"


class Found(enum.Enum):
    """What a step found out; looked up in the table like an event."""

    __hash__ = object.__hash__

    REFUSED = "refused"
    ADDRESS = "address"  # there is one to dial
    UNRESOLVED = "unresolved"  # a name is being looked up
    RESOLVED = "resolved"
    EXHAUSTED = "exhausted"  # every address was tried, or there is none


# Read from the classes once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
_ROUTING, _RESOLVING, _DIALING = State.ROUTING, State.RESOLVING, State.DIALING
_PUMPING, _CLOSED = State.PUMPING, State.CLOSED
_REFUSED, _ADDRESS, _UNRESOLVED = Found.REFUSED, Found.ADDRESS, Found.UNRESOLVED
_RESOLVED, _EXHAUSTED = Found.RESOLVED, Found.EXHAUSTED


@dataclass(slots=True)
class Frontend:
    """What the connections of one listener share."""

    index: int
    name: str
    admission: Admission
    route: Route
    lookup: Callable[[str, Callable[[Lookup], None]], Lookup | None]
    perform: Callable[[Connection, Action], None]  # the engine's, for answers that come late
    ledger: Ledger
    clock: Callable[[], float]  # monotonic seconds


class Connection:
    """One accepted connection. Implements `relay.engines.contract.Handler`."""

    __slots__ = (
        "bytes_down",
        "bytes_up",
        "client",
        "connected",
        "dialed",
        "failure",
        "frontend",
        "lease",
        "link",
        "outcome",
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
        self.targets: list[Target] | None = None  # still to be tried, the next one last
        self.target: Target | None = None  # being tried, or connected to
        self.dialed = 0.0
        self.connected = 0.0  # monotonic seconds; 0: never
        self.failure: Outcome | None = None  # of the last attempt to dial
        self.outcome: Outcome | None = None  # once it is accounted for
        self.source: Address | None = None  # local address towards the upstream
        self.bytes_up = 0
        self.bytes_down = 0

    def advance(self, event: Event | Found, value: object = None) -> Action:
        """Take the step that the table names, and those that follow from it."""
        while True:
            self.state, step, outcome = _BY_STATE[self.state][event]
            if self.state is _CLOSED:
                _close(self, outcome, 0, 0)
                return step  # type: ignore[no-any-return]
            result = step(self, value, outcome)
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
        _close(self, outcome, more_up, more_down)
        return action  # type: ignore[no-any-return]


# The same for every connection.
WAIT, PUMP, REFUSE = Wait(), Pump(), Refuse()
# The ends: what was received is delivered, then FIN; both sides see a reset, since a stream that was cut must not look
# complete; the client's own end is gone, and the upstream sees a reset; the other way round.
CLOSE, RESET_BOTH = Close(), Close(True, True)
RESET_UPSTREAM, RESET_CLIENT = Close(False, True), Close(True, False)

Step = Callable[[Connection, Any, Outcome | None], Action | Found]
Acceptor = Callable[[Address], tuple[Connection, Action]]


def accept(frontend: Frontend, client: Address) -> tuple[Connection, Action]:
    """A connection was accepted: its record, and what to do with it."""
    frontend.ledger.accepted(frontend.index)
    connection = Connection(frontend, client)
    try:
        result = frontend.admission.admit(frontend.index, client)
        if type(result) is not Lease:
            assert not isinstance(result, Lease)
            connection.failure = REFUSAL_OUTCOMES[result]
            return connection, connection.advance(_REFUSED)
        connection.lease = result
        found = _route(connection, None, None)
        if found is not _ADDRESS:
            return connection, connection.advance(found)
        # What the table says, without looking it up: nearly all go this way.
        connection.state = _DIALING
        return connection, _dial(connection, None, None)
    except BaseException:
        # The engine closes the socket but has no connection to tell of the defect.
        connection.advance(Event.DEFECT)
        raise


# --- the steps ------------------------------------------------------------------------------------------------------


def _route(connection: Connection, _value: object, _outcome: Outcome | None) -> Found:
    """The next address to dial; asks for the name's addresses where they are not known."""
    frontend = connection.frontend
    if connection.targets is None:
        connection.targets = frontend.route.targets()
    while connection.targets:
        target = connection.targets.pop()
        if target.address is not None:
            connection.target = target
            return _ADDRESS
        connection.target = target
        found = frontend.lookup(target.host, lambda lookup: _looked_up(connection, lookup))
        if found is None:
            return _UNRESOLVED
        _add_addresses(connection, target, found)
    return _EXHAUSTED


def _wait(_connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    return WAIT


def _looked_up(connection: Connection, lookup: Lookup) -> None:
    """A look-up that was waited for is over; the connection may be gone meanwhile."""
    if connection.state is _RESOLVING:
        try:
            action = connection.advance(_RESOLVED, lookup)
        except Exception:
            logger.exception("internal error after a look-up")
            action = connection.advance(Event.DEFECT)
        connection.frontend.perform(connection, action)


def _resolved(connection: Connection, value: object, outcome: Outcome | None) -> Found:
    assert isinstance(value, Lookup) and connection.target is not None
    _add_addresses(connection, connection.target, value)
    return _route(connection, None, outcome)


def _add_addresses(connection: Connection, target: Target, lookup: Lookup) -> None:
    assert connection.targets is not None
    if lookup.addresses:
        connection.targets.extend(connection.frontend.route.expand(target, lookup.addresses))
    else:
        connection.failure = Outcome.RESOLVE_FAILED


def _dial(connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    target = connection.target
    assert target is not None and target.dial is not None
    connection.dialed = connection.frontend.clock()
    return target.dial


def _next(connection: Connection, value: object, outcome: Outcome | None) -> Found:
    """A dial failed: remember how, try the next address."""
    if outcome is None:
        outcome = DIAL_OUTCOMES.get(value if isinstance(value, int) else errno.EIO, Outcome.DIAL_FAILED)
    connection.failure = outcome
    if outcome is Outcome.NO_RESOURCES:
        connection.targets = []  # another address would need what there is none of
    return _route(connection, None, None)


def _pump(connection: Connection, value: Address | None, _outcome: Outcome | None) -> Action:
    connection.connected = connection.frontend.clock()
    connection.source = value
    connection.targets = None  # nothing more is to be tried
    assert connection.target is not None
    connection.frontend.ledger.connected(connection.target.upstream, connection.connected - connection.dialed)
    return PUMP


def _close(connection: Connection, outcome: Outcome | None, up: int, down: int) -> None:
    """The one place where a connection ends: give its place back and account for it, and for bytes not told of yet."""
    if connection.outcome is not None:
        return  # a defect after the end, perhaps in what the end led to
    outcome = outcome or connection.failure or Outcome.INTERNAL_ERROR
    if connection.lease is not None:
        connection.lease.release()
    connection.targets = None
    connection.outcome = outcome
    connection.frontend.ledger.closed(connection, outcome, up, down)


TRANSITIONS: dict[tuple[State, Event | Found], tuple[State, Step | Action, Outcome | None]] = {
    # in this state, when this happened      → be in this state, take this step, or end with this action and outcome
    (_ROUTING, Found.REFUSED): (_CLOSED, REFUSE, None),  # what was in the way is its outcome
    (_ROUTING, Found.ADDRESS): (_DIALING, _dial, None),
    (_ROUTING, Found.UNRESOLVED): (_RESOLVING, _wait, None),
    (_ROUTING, Found.EXHAUSTED): (_CLOSED, RESET_BOTH, None),  # the last failure is its outcome
    (_RESOLVING, Found.RESOLVED): (_ROUTING, _resolved, None),
    (_DIALING, Event.CONNECTED): (_PUMPING, _pump, None),
    (_DIALING, Event.DIAL_FAILED): (_ROUTING, _next, None),  # the errno says which outcome
    (_DIALING, Event.DIAL_TIMEOUT): (_ROUTING, _next, Outcome.DIAL_TIMEOUT),
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
    (_PUMPING, Event.DEFECT): (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR),
    (_CLOSED, Event.DEFECT): (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR),
}
for _state in (_ROUTING, _RESOLVING, _DIALING):
    # The client went away, or the relay has to, before there was an upstream.
    TRANSITIONS[_state, Event.CLIENT_RESET] = (_CLOSED, RESET_UPSTREAM, Outcome.CLIENT_ABORT)
    TRANSITIONS[_state, Event.CLIENT_LOST] = (_CLOSED, RESET_BOTH, Outcome.CLIENT_ABORT)
    TRANSITIONS[_state, Event.STOP] = (_CLOSED, RESET_BOTH, Outcome.SHUTDOWN_DIAL)
    TRANSITIONS[_state, Event.DEFECT] = (_CLOSED, RESET_BOTH, Outcome.INTERNAL_ERROR)
# The same by state first: without a tuple to make and to hash for each step.
_BY_STATE: dict[State, dict[Event | Found, tuple[State, Any, Outcome | None]]] = {state: {} for state in State}
for (_state, _event), _entry in TRANSITIONS.items():
    _BY_STATE[_state][_event] = _entry
