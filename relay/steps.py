"""The steps of a connection's transition table: each decides on plain values, and touches no socket.

A step returns either an `Action` for the engine, or a `Found` (what it found out), which is looked up in the table at
once. `close` is the only place that ends a connection.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from relay.address import Address
from relay.admit import REFUSAL_OUTCOMES
from relay.core import client_hello, proxy_header
from relay.core.limits import Lease
from relay.dial import Attempts
from relay.engines.contract import NEVER, Action, Close, Dial, Event, Pump, Refuse, Wait
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS, Outcome
from relay.sniff import Gate

if TYPE_CHECKING:
    from relay.connection import Connection

logger = logging.getLogger("relay.connection")


class Found(enum.Enum):
    """What a step found out; looked up in the table like an event."""

    __hash__ = object.__hash__

    REFUSED = "refused"
    READ = "read"  # all that is asked for of what the client says first, and it is let through
    ADDRESS = "address"  # there is one to dial
    ANOTHER = "another"  # a dial failed, and there is another one to dial
    UNRESOLVED = "unresolved"  # it is not known yet what there is to dial
    RESOLVED = "resolved"
    EXHAUSTED = "exhausted"  # every address was tried, or there is none, or no turn for it
    QUEUED = "queued"  # its turn to be dialled comes later
    TURN = "turn"  # it has come
    NO_PORT = "no_port"  # no source address has a port left for the target


# Read from the class once: on Python 3.11 each look at an enumeration's member goes through its metaclass.
_REFUSED, _READ, _ADDRESS, _UNRESOLVED = Found.REFUSED, Found.READ, Found.ADDRESS, Found.UNRESOLVED
_RESOLVED, _EXHAUSTED, _QUEUED, _NO_PORT = Found.RESOLVED, Found.EXHAUSTED, Found.QUEUED, Found.NO_PORT
_ANOTHER = Found.ANOTHER

# The same for every connection.
WAIT, PUMP, REFUSE = Wait(), Pump(), Refuse()
# The ends: what was received is delivered, then FIN; both sides see a reset, since a stream that was cut must not look
# complete; the client's own end is gone, and the upstream sees a reset; the other way round.
CLOSE, RESET_BOTH = Close(), Close(True, True)
RESET_UPSTREAM, RESET_CLIENT = Close(False, True), Close(True, False)

LEAST_TIMEOUT = 0.001  # seconds of a dial that begins at the very end of dial.timeout

Step = Callable[["Connection", Any, Outcome | None], Action | Found]


def read_first(connection: Connection, value: bytes, _outcome: Outcome | None) -> Action | Found:
    """The client has sent something: a PROXY header, its hello, or a part of them."""
    gate = connection.frontend.gate
    assert gate is not None
    connection.moved(len(value), 0)
    if connection.offset is None:
        admitted = _read_proxy_header(connection, gate, value)
        if admitted is None:
            return gate.sniff
        if not admitted:
            return _REFUSED
    offset = connection.offset or 0
    data = value[offset:]
    if gate.wants_hello:
        try:
            hello = client_hello.read(data)
        except (client_hello.NotTls, client_hello.Malformed):
            connection.failure = Outcome.REFUSED_TLS
            return _REFUSED
        if type(hello) is int:
            if len(data) < client_hello.LIMIT:
                return gate.sniff._replace(least=offset + hello)
            connection.failure = Outcome.REFUSED_TLS
            return _REFUSED
        assert type(hello) is client_hello.ClientHello
        connection.hello = hello
        if not gate.allows(hello):
            connection.failure = Outcome.REFUSED_SNI
            return _REFUSED
    connection.first = data
    return _READ


def _read_proxy_header(connection: Connection, gate: Gate, value: bytes) -> bool | None:
    """Learn from a PROXY header who the client is, and admit it as that one, or not. None: there is more to come."""
    try:
        header = proxy_header.parse(value)
    except proxy_header.NotProxy:
        if gate.requires_proxy:
            connection.failure = Outcome.REFUSED_PROXY
            return False
        connection.offset = 0
    except proxy_header.Malformed:
        connection.failure = Outcome.REFUSED_PROXY
        return False
    else:
        if header is None:
            return None
        connection.offset = header.size
        connection.header = header
        if header.source is not None:
            connection.client = header.source
    # The place that it had was for somebody unknown.
    if connection.lease is not None:
        connection.lease.release()
        connection.lease = None
    frontend = connection.frontend
    result = frontend.admission.admit(frontend.index, connection.client)
    if type(result) is not Lease:
        assert not isinstance(result, Lease)
        connection.failure = REFUSAL_OUTCOMES[result]
        return False
    connection.lease = result
    return True


def route(connection: Connection, _value: object, _outcome: Outcome | None) -> Found:
    """The next address to dial."""
    targets = connection.targets
    if targets is None:
        frontend = connection.frontend
        targets = frontend.route.targets(frontend.clock())
        if targets is None:
            return _UNRESOLVED
        connection.targets = targets
        if not targets:
            connection.target = frontend.route.unknown
            connection.failure = Outcome.RESOLVE_FAILED
    if targets:
        connection.target = targets.pop()
        return _ADDRESS
    return _EXHAUSTED


def next_target(connection: Connection, _value: object, _outcome: Outcome | None) -> Found:
    """The next address to dial after one that failed, or that no source address has a port left for."""
    targets = connection.targets
    if not targets:
        return _EXHAUSTED
    connection.target = targets.pop()
    return _ANOTHER if type(targets) is Attempts else _ADDRESS


def wait(connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    """The upstream's addresses are not known yet."""
    connection.frontend.route.wait(partial(late, connection, _RESOLVED))
    return WAIT


def late(connection: Connection, found: Found) -> None:
    """What a connection waited for has come; it may be gone meanwhile."""
    if connection.waiting:
        try:
            action = connection.advance(found)
        except Exception:
            logger.exception("internal error after waiting")
            action = connection.advance(Event.DEFECT)
        connection.frontend.perform(connection, action)


def dial(connection: Connection, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target, when it is its turn."""
    pacer = connection.frontend.pacer
    if pacer is not None:
        turn = pacer.enter(connection)
        if turn is False:
            return _QUEUED
        if turn is not True:
            connection.failure = Outcome.DIAL_QUEUE_FULL if turn.full else Outcome.DIAL_QUEUE_TIMEOUT
            return _EXHAUSTED
    return begin(connection, None, None)


def queue(_connection: Connection, _value: object, _outcome: Outcome | None) -> Action:
    """Its turn comes later."""
    return WAIT


def begin(connection: Connection, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target, from the source with the fewest connections to it."""
    frontend, target = connection.frontend, connection.target
    assert target is not None
    now = frontend.clock()
    source = frontend.sources.take(target, now)
    if source < 0:
        connection.failure = Outcome.NO_SOURCE_PORT
        return _NO_PORT
    connection.port_of = source
    frontend.balance.dialing(target, now)
    connection.dialed = now
    return target.dials[source]


def redial(connection: Connection, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the next target, when it is its turn, in what is left of dial.timeout."""
    return _shortened(connection, dial(connection, None, None))


def take_turn(connection: Connection, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target after a wait for dial.rate, unless dial.timeout has ended meanwhile."""
    targets = connection.targets
    if type(targets) is Attempts and connection.frontend.clock() >= targets.until:
        connection.failure = Outcome.DIAL_TIMEOUT
        return _EXHAUSTED
    return _shortened(connection, begin(connection, None, None))


def _shortened(connection: Connection, action: Action | Found) -> Action | Found:
    """The dial with its timeout cut to what is left of dial.timeout; everything else as it is."""
    targets = connection.targets
    if type(action) is not Dial or type(targets) is not Attempts:
        return action
    left = targets.until - connection.dialed
    return action._replace(timeout=max(left, LEAST_TIMEOUT)) if left < action.timeout else action


def try_next(connection: Connection, value: object, outcome: Outcome | None) -> Found:
    """A dial failed: remember how, try the next address, unless dial.timeout has ended."""
    if outcome is None:
        outcome = DIAL_OUTCOMES.get(value if isinstance(value, int) else errno.EIO, Outcome.DIAL_FAILED)
    connection.failure, connection.error = outcome, value
    frontend, target, source = connection.frontend, connection.target, connection.port_of
    assert target is not None and connection.targets is not None
    connection.port_of = -1
    frontend.sources.give_back(target, source)
    now = frontend.clock()
    if outcome in OWN_FAULTS:
        frontend.balance.closed(target)
        if outcome is Outcome.NO_SOURCE_PORT:
            frontend.sources.shun(target, source, now)
            connection.targets.append(target)  # another source may have one
        else:
            connection.targets = []  # another address would need what there is none of
    else:
        frontend.balance.failed(target, now)
        assert target.address is not None
        frontend.ledger.dial_failed(target.upstream, target.address, outcome)
        if not connection.targets:
            frontend.route.failing(now)
    targets = connection.targets
    if not targets:
        return _EXHAUSTED
    if type(targets) is not Attempts:
        # The first failure. Connections whose first dial succeeds, nearly all, neither keep nor compare a time.
        until = connection.dialed + frontend.dial_timeout if frontend.dial_timeout else NEVER
        targets = connection.targets = Attempts(targets, until)
    if now >= targets.until:
        connection.failure = Outcome.DIAL_TIMEOUT
        targets.clear()
        frontend.route.failing(now)
        return _EXHAUSTED
    return next_target(connection, None, None)


def pump(connection: Connection, value: Address | None, _outcome: Outcome | None) -> Action:
    """It is connected: let bytes flow, those first that have been read."""
    connection.connected = connection.frontend.clock()
    connection.source = value
    connection.targets = connection.error = None  # nothing more is to be tried, and what failed was made good
    frontend, target = connection.frontend, connection.target
    assert target is not None
    frontend.balance.connected(target)
    frontend.ledger.connected(target.upstream, connection.connected - connection.dialed)
    if frontend.ages is not None:
        connection.expires_at = connection.started + frontend.ages()
    first, connection.first = connection.first, b""
    if frontend.send_proxy:
        first = _proxy_header(connection) + first
    return Pump(first) if first else PUMP


def _proxy_header(connection: Connection) -> bytes:
    """What the upstream is told of the client, and of the address that it connected to."""
    frontend, header = connection.frontend, connection.header
    if header is not None:
        source, destination = header.source, header.destination
    else:
        source, destination = connection.client, frontend.local_address(connection)
    if source is None or destination is None:
        return proxy_header.build(frontend.send_proxy, None, None)
    return proxy_header.build(frontend.send_proxy, source, destination)


def close(connection: Connection, outcome: Outcome | None, up: int, down: int) -> None:
    """The one place where a connection ends: give back what it held, account for it and for bytes not told of yet."""
    if connection.outcome is not None:
        return  # a defect after the end, perhaps in what the end led to
    outcome = outcome or connection.failure or Outcome.INTERNAL_ERROR
    if connection.lease is not None:
        connection.lease.release()
    frontend = connection.frontend
    if connection.port_of >= 0:
        assert connection.target is not None
        frontend.sources.give_back(connection.target, connection.port_of)
        frontend.balance.closed(connection.target)
    if frontend.pacer is not None:
        frontend.pacer.leave(connection)
    connection.targets = None
    connection.outcome = outcome
    frontend.ledger.closed(connection, outcome, up, down)
