"""The state machine of a connection, from accept to close, as two transition tables.

    accept → admit → preread → route → dial → pump → account → close

STEPS follows that line from top to bottom. Its entries name the next state and the step to take there; a step is a
plain synchronous function that touches no socket. It returns either an `Action` for the engine, or a `Found` (its
result), which is looked up at once. An entry of ENDS leads to CLOSED: it has the last action for the engine and the
`Outcome`. `steps.close` is the only place that ends a connection, and no entry leads out of CLOSED: so every
connection has exactly one outcome. docs/state-machines.md has a diagram, generated from the tables.

This module does not move bytes, keep timers, or know which engine it runs on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from relay.address import Address
from relay.core.limits import Lease, Refusal
from relay.engines.contract import Action, Close, Event, Refuse
from relay.outcome import Outcome
from relay.worker.connection import steps
from relay.worker.connection.admission import REFUSAL_OUTCOMES, Denied
from relay.worker.connection.record import ConnectionRecord, Found, Frontend, State
from relay.worker.connection.steps import CLOSE, REFUSE, RESET_BOTH, RESET_CLIENT, RESET_UPSTREAM, Step

logger = logging.getLogger("relay.connection")

# Looked up once: on Python 3.11 each access to an enumeration's member goes through its metaclass.
_PREREADING, _ROUTING, _RESOLVING = State.PREREADING, State.ROUTING, State.RESOLVING
_QUEUED, _DIALING, _PUMPING, _CLOSED = State.QUEUED, State.DIALING, State.PUMPING, State.CLOSED
_REFUSED, _READ, _ADDRESS = Found.REFUSED, Found.READ, Found.ADDRESS

STEPS: dict[tuple[State, Event | Found], tuple[State, Step, Outcome | None]] = {
    # state, event or result → next state, step, outcome for the step
    (_PREREADING, Event.PREREAD): (_PREREADING, steps.read_first, None),
    # Without a whole hello; the outcome is for a connection that is refused for it.
    (_PREREADING, Event.PREREAD_ENDED): (_PREREADING, steps.end_preread, Outcome.CLIENT_HELLO_ABORT),
    (_PREREADING, Event.PREREAD_TIMEOUT): (_PREREADING, steps.end_preread, Outcome.CLIENT_HELLO_TIMEOUT),
    (_PREREADING, Found.READ): (_ROUTING, steps.route, None),
    (_ROUTING, Found.ADDRESS): (_DIALING, steps.dial, None),
    (_ROUTING, Found.UNRESOLVED): (_RESOLVING, steps.wait, None),
    (_RESOLVING, Found.RESOLVED): (_ROUTING, steps.route, None),
    (_ROUTING, Found.ANOTHER): (_DIALING, steps.redial, None),
    (_DIALING, Found.QUEUED): (_QUEUED, steps.queue, None),
    (_DIALING, Found.NO_PORT): (_ROUTING, steps.next_target, None),
    (_QUEUED, Found.TURN): (_DIALING, steps.take_turn, None),
    (_DIALING, Event.CONNECTED): (_PUMPING, steps.pump, None),
    (_DIALING, Event.DIAL_FAILED): (_ROUTING, steps.try_next, None),  # the step finds the outcome by errno
    (_DIALING, Event.DIAL_TIMEOUT): (_ROUTING, steps.try_next, Outcome.DIAL_TIMEOUT),
}

ENDS: dict[tuple[State, Event | Found], tuple[Refuse | Close, Outcome | None]] = {
    # state, event or result → last action, outcome (None: the record's `failure`); the next state is CLOSED
    (_ROUTING, Found.REFUSED): (REFUSE, None),
    (_PREREADING, Found.REFUSED): (RESET_BOTH, None),
    (_ROUTING, Found.EXHAUSTED): (RESET_BOTH, None),
    (_DIALING, Found.EXHAUSTED): (RESET_BOTH, None),  # no turn in the dial queue, or dial.timeout has ended
    # Data was flowing.
    (_PUMPING, Event.FINISHED): (CLOSE, Outcome.OK),
    (_PUMPING, Event.CLIENT_RESET): (RESET_UPSTREAM, Outcome.CLIENT_RESET),
    (_PUMPING, Event.UPSTREAM_RESET): (RESET_CLIENT, Outcome.UPSTREAM_RESET),
    (_PUMPING, Event.CLIENT_LOST): (RESET_BOTH, Outcome.CLIENT_LOST),
    (_PUMPING, Event.UPSTREAM_LOST): (RESET_BOTH, Outcome.UPSTREAM_LOST),
    (_PUMPING, Event.IDLE): (RESET_BOTH, Outcome.IDLE_TIMEOUT),
    (_PUMPING, Event.CLIENT_HALF_CLOSE): (RESET_BOTH, Outcome.CLIENT_HALF_CLOSE_TIMEOUT),
    (_PUMPING, Event.UPSTREAM_HALF_CLOSE): (RESET_BOTH, Outcome.UPSTREAM_HALF_CLOSE_TIMEOUT),
    # The relay stops: what was received is delivered, then FIN.
    (_PUMPING, Event.STOP): (CLOSE, Outcome.SHUTDOWN),
    # Graceful closes: each side has received everything that the other side sent.
    (_PUMPING, Event.DRAINED): (CLOSE, Outcome.DRAINED),
    (_PUMPING, Event.AGED): (CLOSE, Outcome.MAX_AGE),
    (_PUMPING, Event.DEFECT): (RESET_BOTH, Outcome.INTERNAL_ERROR),
    (_CLOSED, Event.DEFECT): (RESET_BOTH, Outcome.INTERNAL_ERROR),
}
for _state in (_PREREADING, _ROUTING, _RESOLVING, _QUEUED, _DIALING):
    # The client went away, or the relay stops, before an upstream is connected.
    _abort = Outcome.CLIENT_HELLO_ABORT if _state is _PREREADING else Outcome.CLIENT_ABORT
    ENDS[_state, Event.CLIENT_RESET] = (RESET_UPSTREAM, _abort)
    ENDS[_state, Event.CLIENT_LOST] = (RESET_BOTH, _abort)
    ENDS[_state, Event.STOP] = (RESET_BOTH, Outcome.SHUTDOWN_DIAL)
    ENDS[_state, Event.DEFECT] = (RESET_BOTH, Outcome.INTERNAL_ERROR)

# The same tables by state, then event, which saves making and hashing a tuple for each event. `_CLOSES` has the events
# that an engine may pass to `Handler.end`.
_STEPS: dict[State, dict[Event | Found, tuple[State, Step, Outcome | None]]] = {state: {} for state in State}
_ENDS: dict[State, dict[Event | Found, tuple[Refuse | Close, Outcome | None]]] = {state: {} for state in State}
_CLOSES: dict[State, dict[Event, tuple[Close, Outcome | None]]] = {state: {} for state in State}
for (_state, _event), _step in STEPS.items():
    _STEPS[_state][_event] = _step
for (_state, _event), (_action, _outcome) in ENDS.items():
    _ENDS[_state][_event] = _action, _outcome
    if isinstance(_event, Event) and isinstance(_action, Close):
        _CLOSES[_state][_event] = _action, _outcome


class Connection(ConnectionRecord):
    """One accepted connection. It implements `relay.engines.contract.Handler`."""

    __slots__ = ()

    def advance(self, event: Event | Found, value: object = None) -> Action:
        """Take the step that the tables name for the event, and the steps that follow from its result."""
        while True:
            entry = _STEPS[self.state].get(event)
            if entry is None:
                action, outcome = _ENDS[self.state][event]
                self.state = _CLOSED
                steps.close(self, outcome, 0, 0)
                return action
            self.state, step, outcome = entry
            result = step(self, value, outcome)
            if result is _READ:
                return _route_and_dial(self)
            if type(result) is not Found:
                return result  # type: ignore[return-value]  # not a Found: mypy does not narrow the rest by `type() is`
            event, value = result, None

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        """`moved` for the last time and `advance` in one, for every event that can only end a connection."""
        action, outcome = _CLOSES[self.state][event]
        self.state = _CLOSED
        more_up, more_down = up - self.bytes_up, down - self.bytes_down
        self.bytes_up, self.bytes_down = up, down
        self.error = value
        steps.close(self, outcome, more_up, more_down)
        return action


def _route_and_dial(connection: Connection) -> Action:
    """Take the steps for READ and ADDRESS without looking them up in STEPS: nearly all connections go this way."""
    connection.state = _ROUTING
    found = steps.route(connection, None, None)
    if found is not _ADDRESS:
        return connection.advance(found)
    connection.state = _DIALING
    action = steps.dial(connection, None, None)
    if type(action) is Found:
        return connection.advance(action)
    return action  # type: ignore[return-value]  # as above


def resume(connection: ConnectionRecord, found: Found) -> None:
    """Go on with a connection that waited for `found`, unless it has ended meanwhile."""
    if not connection.waiting:
        return
    assert isinstance(connection, Connection)
    try:
        action = connection.advance(found)
    except Exception:
        logger.exception("internal error after waiting")
        action = connection.advance(Event.DEFECT)
    connection.frontend.perform(connection, action)


Acceptor = Callable[[Address], tuple[Connection, Action]]


def accept(frontend: Frontend, client: Address) -> tuple[Connection, Action]:
    """Admit an accepted connection; return its record, and its first action for the engine."""
    frontend.accounting.accepted(frontend.index)
    connection = Connection(frontend, client)
    try:
        preread = frontend.preread
        if preread is not None and not preread.active:  # its routes are off
            preread = None
        if preread is not None and preread.reads_proxy:
            connection.offset = None
            if preread.requires_proxy and not preread.trusts(client):
                connection.failure = Outcome.REFUSED_PROXY
                return connection, connection.advance(_REFUSED)
            result: Lease | Refusal | Denied = frontend.admission.admit_unknown(frontend.index)
        elif frontend.customers is None:
            result = frontend.admission.admit(frontend.index, client)
        else:
            result = steps.admit_by_customer(connection, frontend.customers)
        if not isinstance(result, Lease):
            connection.failure = REFUSAL_OUTCOMES[result]
            return connection, connection.advance(_REFUSED)
        connection.lease = result
        if preread is not None:
            connection.state = _PREREADING
            return connection, preread.action
        return connection, _route_and_dial(connection)
    except BaseException:
        # The engine closes the socket, but has no connection yet that it could pass the defect to.
        connection.advance(Event.DEFECT)
        raise
