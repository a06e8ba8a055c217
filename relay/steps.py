"""The steps of a connection's transition table: each decides on plain values, and touches no socket.

A step returns either an `Action` for the engine, or a `Found` (what it found out), which is looked up in the table at
once. `close` is the only place that ends a connection.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from relay.core.client_hello import Malformed, NotTls, parse
from relay.dial import DIAL_OUTCOMES, Target
from relay.engines.contract import Action, Address, Close, Event, Pump, Refuse, Wait
from relay.outcome import Outcome
from relay.resolve import Lookup

if TYPE_CHECKING:
    from relay.connection import Connection

logger = logging.getLogger("relay.connection")


class Found(enum.Enum):
    """What a step found out; looked up in the table like an event."""

    __hash__ = object.__hash__

    REFUSED = "refused"
    HELLO = "hello"  # a TLS hello with a name that is let through
    ADDRESS = "address"  # there is one to dial
    UNRESOLVED = "unresolved"  # a name is being looked up
    RESOLVED = "resolved"
    EXHAUSTED = "exhausted"  # every address was tried, or there is none


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
_REFUSED, _HELLO, _ADDRESS, _UNRESOLVED = Found.REFUSED, Found.HELLO, Found.ADDRESS, Found.UNRESOLVED
_RESOLVED, _EXHAUSTED = Found.RESOLVED, Found.EXHAUSTED

# The same for every connection.
WAIT, PUMP, REFUSE = Wait(), Pump(), Refuse()
# The ends: what was received is delivered, then FIN; both sides see a reset, since a stream that was cut must not look
# complete; the client's own end is gone, and the upstream sees a reset; the other way round.
CLOSE, RESET_BOTH = Close(), Close(True, True)
RESET_UPSTREAM, RESET_CLIENT = Close(False, True), Close(True, False)

Step = Callable[["Connection", Any, Outcome | None], Action | Found]


def read_hello(connection: Connection, value: bytes, _outcome: Outcome | None) -> Action | Found:
    """The client has sent something: its hello, or a part of it."""
    gate = connection.frontend.gate
    assert gate is not None
    connection.moved(len(value), 0)
    try:
        hello = parse(value)
    except (NotTls, Malformed):
        connection.failure = Outcome.REFUSED_TLS
        return _REFUSED
    if hello is None:
        if len(value) < gate.sniff.limit:
            return gate.sniff
        connection.failure = Outcome.REFUSED_TLS
        return _REFUSED
    connection.hello = hello
    if not gate.allows(hello):
        connection.failure = Outcome.REFUSED_SNI
        return _REFUSED
    connection.first = value
    return _HELLO


def route(connection: Connection, _value: object, _outcome: Outcome | None) -> Found:
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


def wait(_connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    """A look-up is under way."""
    return WAIT


def _looked_up(connection: Connection, lookup: Lookup) -> None:
    """A look-up that was waited for is over; the connection may be gone meanwhile."""
    if connection.resolving:
        try:
            action = connection.advance(_RESOLVED, lookup)
        except Exception:
            logger.exception("internal error after a look-up")
            action = connection.advance(Event.DEFECT)
        connection.frontend.perform(connection, action)


def resolved(connection: Connection, value: object, outcome: Outcome | None) -> Found:
    """The look-up is over."""
    assert isinstance(value, Lookup) and connection.target is not None
    _add_addresses(connection, connection.target, value)
    return route(connection, None, outcome)


def _add_addresses(connection: Connection, target: Target, lookup: Lookup) -> None:
    assert connection.targets is not None
    if lookup.addresses:
        connection.targets.extend(connection.frontend.route.expand(target, lookup.addresses))
    else:
        connection.failure = Outcome.RESOLVE_FAILED


def dial(connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    """Connect to the target."""
    target = connection.target
    assert target is not None and target.dial is not None
    connection.dialed = connection.frontend.clock()
    return target.dial


def try_next(connection: Connection, value: object, outcome: Outcome | None) -> Found:
    """A dial failed: remember how, try the next address."""
    if outcome is None:
        outcome = DIAL_OUTCOMES.get(value if isinstance(value, int) else errno.EIO, Outcome.DIAL_FAILED)
    connection.failure = outcome
    if outcome is Outcome.NO_RESOURCES:
        connection.targets = []  # another address would need what there is none of
    return route(connection, None, None)


def pump(connection: Connection, value: Address | None, _outcome: Outcome | None) -> Action:
    """It is connected: let bytes flow, those first that have been read."""
    connection.connected = connection.frontend.clock()
    connection.source = value
    connection.targets = None  # nothing more is to be tried
    assert connection.target is not None
    connection.frontend.ledger.connected(connection.target.upstream, connection.connected - connection.dialed)
    if not connection.first:
        return PUMP
    first, connection.first = connection.first, b""
    return Pump(first)


def close(connection: Connection, outcome: Outcome | None, up: int, down: int) -> None:
    """The one place where a connection ends: give its place back and account for it, and for bytes not told of yet."""
    if connection.outcome is not None:
        return  # a defect after the end, perhaps in what the end led to
    outcome = outcome or connection.failure or Outcome.INTERNAL_ERROR
    if connection.lease is not None:
        connection.lease.release()
    connection.targets = None
    connection.outcome = outcome
    connection.frontend.ledger.closed(connection, outcome, up, down)
