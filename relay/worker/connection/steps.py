"""The steps of a connection's transition table: each decides on plain values, and touches no socket.

A step returns either an `Action` for the engine, or a `Found` (what it found out), which is looked up in the table at
once. `close` is the only place that ends a connection.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from relay.address import Address
from relay.core import client_hello, proxy_header
from relay.core.limits import Lease
from relay.engines.contract import NEVER, Action, Close, Dial, Pump, Refuse, Wait
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS, Outcome
from relay.worker.connection.admission import REFUSAL_OUTCOMES
from relay.worker.connection.preread import PrereadFilter
from relay.worker.connection.record import ConnectionRecord, Found
from relay.worker.connection.target import Attempts

if TYPE_CHECKING:
    pass

logger = logging.getLogger("relay.connection")


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

Step = Callable[["ConnectionRecord", Any, Outcome | None], Action | Found]


def read_first(connection: ConnectionRecord, value: bytes, _outcome: Outcome | None) -> Action | Found:
    """The client has sent something: a PROXY header, its hello, or a part of them."""
    preread = connection.frontend.preread
    assert preread is not None
    connection.moved(len(value), 0)
    if connection.offset is None:
        admitted = _read_proxy_header(connection, preread, value)
        if admitted is None:
            return preread.action
        if not admitted:
            return _REFUSED
    offset = connection.offset or 0
    data = value[offset:]
    if preread.wants_hello:
        try:
            hello = client_hello.read(data)
        except (client_hello.NotTls, client_hello.Malformed):
            connection.failure = Outcome.REFUSED_TLS
            return _REFUSED
        if type(hello) is int:
            if len(data) < client_hello.LIMIT:
                return preread.action._replace(least=offset + hello)
            connection.failure = Outcome.REFUSED_TLS
            return _REFUSED
        assert type(hello) is client_hello.ClientHello
        connection.hello = hello
        if not preread.allows(hello):
            connection.failure = Outcome.REFUSED_SNI
            return _REFUSED
    connection.first = data
    return _READ


def _read_proxy_header(connection: ConnectionRecord, preread: PrereadFilter, value: bytes) -> bool | None:
    """Learn from a PROXY header who the client is, and admit it as that one, or not. None: there is more to come."""
    try:
        header = proxy_header.parse(value)
    except proxy_header.NotProxy:
        if preread.requires_proxy:
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


def route(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Found:
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


def next_target(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Found:
    """The next address to dial after one that failed, or that no source address has a port left for."""
    targets = connection.targets
    if not targets:
        return _EXHAUSTED
    connection.target = targets.pop()
    return _ANOTHER if type(targets) is Attempts else _ADDRESS


def wait(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action:
    """The upstream's addresses are not known yet."""
    frontend = connection.frontend
    frontend.route.wait(partial(frontend.resume, connection, _RESOLVED))
    return WAIT


def dial(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target, when it is its turn."""
    dial_queue = connection.frontend.dial_queue
    if dial_queue is not None:
        turn = dial_queue.enter(connection)
        if turn is False:
            return _QUEUED
        if turn is not True:
            connection.failure = Outcome.DIAL_QUEUE_FULL if turn.full else Outcome.DIAL_QUEUE_TIMEOUT
            return _EXHAUSTED
    return begin(connection, None, None)


def queue(_connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action:
    """Its turn comes later."""
    return WAIT


def begin(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target, from the source with the fewest connections to it."""
    frontend, target = connection.frontend, connection.target
    assert target is not None
    now = frontend.clock()
    source = frontend.source_ports.take(target, now)
    if source < 0:
        connection.failure = Outcome.NO_SOURCE_PORT
        return _NO_PORT
    connection.port_of = source
    frontend.balance.dialing(target, now)
    connection.dialed = now
    return target.dials[source]


def redial(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the next target, when it is its turn, in what is left of dial.timeout."""
    return _shortened(connection, dial(connection, None, None))


def take_turn(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target after a wait for dial.rate, unless dial.timeout has ended meanwhile."""
    targets = connection.targets
    if type(targets) is Attempts and connection.frontend.clock() >= targets.until:
        connection.failure = Outcome.DIAL_TIMEOUT
        return _EXHAUSTED
    return _shortened(connection, begin(connection, None, None))


def _shortened(connection: ConnectionRecord, action: Action | Found) -> Action | Found:
    """The dial with its timeout cut to what is left of dial.timeout; everything else as it is."""
    targets = connection.targets
    if type(action) is not Dial or type(targets) is not Attempts:
        return action
    left = targets.until - connection.dialed
    return action._replace(timeout=max(left, LEAST_TIMEOUT)) if left < action.timeout else action


def try_next(connection: ConnectionRecord, value: object, outcome: Outcome | None) -> Found:
    """A dial failed: remember how, try the next address, unless dial.timeout has ended."""
    if outcome is None:
        outcome = DIAL_OUTCOMES.get(value if isinstance(value, int) else errno.EIO, Outcome.DIAL_FAILED)
    connection.failure, connection.error = outcome, value
    frontend, target, source = connection.frontend, connection.target, connection.port_of
    assert target is not None and connection.targets is not None
    connection.port_of = -1
    frontend.source_ports.give_back(target, source)
    now = frontend.clock()
    if outcome in OWN_FAULTS:
        frontend.balance.closed(target)
        if outcome is Outcome.NO_SOURCE_PORT:
            frontend.source_ports.shun(target, source, now)
            connection.targets.append(target)  # another source may have one
        else:
            connection.targets = []  # another address would need what there is none of
    else:
        frontend.balance.failed(target, now)
        assert target.address is not None
        frontend.accounting.dial_failed(target.upstream, target.address, outcome)
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


def pump(connection: ConnectionRecord, value: Address | None, _outcome: Outcome | None) -> Action:
    """It is connected: let bytes flow, those first that have been read."""
    connection.connected = connection.frontend.clock()
    connection.source = value
    connection.targets = connection.error = None  # nothing more is to be tried, and what failed was made good
    frontend, target = connection.frontend, connection.target
    assert target is not None
    frontend.balance.connected(target)
    frontend.accounting.connected(target.upstream, connection.connected - connection.dialed)
    if frontend.lifetime is not None:
        connection.expires_at = connection.started + frontend.lifetime()
    first, connection.first = connection.first, b""
    if frontend.send_proxy:
        first = _proxy_header(connection) + first
    return Pump(first) if first else PUMP


def _proxy_header(connection: ConnectionRecord) -> bytes:
    """What the upstream is told of the client, and of the address that it connected to."""
    frontend, header = connection.frontend, connection.header
    if header is not None:
        source, destination = header.source, header.destination
    else:
        source, destination = connection.client, frontend.local_address(connection)
    if source is None or destination is None:
        return proxy_header.build(frontend.send_proxy, None, None)
    return proxy_header.build(frontend.send_proxy, source, destination)


def close(connection: ConnectionRecord, outcome: Outcome | None, up: int, down: int) -> None:
    """The one place where a connection ends: give back what it held, account for it and for bytes not told of yet."""
    if connection.outcome is not None:
        return  # a defect after the end, perhaps in what the end led to
    outcome = outcome or connection.failure or Outcome.INTERNAL_ERROR
    if connection.lease is not None:
        connection.lease.release()
    frontend = connection.frontend
    if connection.port_of >= 0:
        assert connection.target is not None
        frontend.source_ports.give_back(connection.target, connection.port_of)
        frontend.balance.closed(connection.target)
    if frontend.dial_queue is not None:
        frontend.dial_queue.leave(connection)
    connection.targets = None
    connection.outcome = outcome
    frontend.accounting.closed(connection, outcome, up, down)
