"""The steps of a connection's transition tables: each decides on plain values, and touches no socket.

A step returns either an `Action` for the engine, or a `Found` (its result), which is looked up in the tables at once.
`close` is the only place that ends a connection.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from relay.address import Address
from relay.core import client_hello, proxy_header
from relay.core.customers import NOBODY
from relay.core.limits import Lease, Refusal
from relay.engines.contract import NEVER, Action, Close, Dial, Pump, Refuse, Wait
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS, Outcome
from relay.worker.connection.admission import REFUSAL_OUTCOMES, Denied
from relay.worker.connection.customers import Customers
from relay.worker.connection.preread import PrereadFilter
from relay.worker.connection.record import ConnectionRecord, Found, Frontend
from relay.worker.connection.target import Attempts

# Looked up once: on Python 3.11 each access to an enumeration's member goes through its metaclass.
_REFUSED, _READ, _ADDRESS, _UNRESOLVED = Found.REFUSED, Found.READ, Found.ADDRESS, Found.UNRESOLVED
_RESOLVED, _EXHAUSTED, _QUEUED, _NO_PORT = Found.RESOLVED, Found.EXHAUSTED, Found.QUEUED, Found.NO_PORT
_ANOTHER = Found.ANOTHER

# Actions that are the same for every connection.
WAIT, PUMP, REFUSE = Wait(), Pump(), Refuse()
# The ways to close. CLOSE delivers what was received, then sends FIN. RESET_BOTH sends RST to both sides, since a cut
# stream must not look complete. The others send RST to one side, because the other side has reset the connection.
CLOSE, RESET_BOTH = Close(), Close(True, True)
RESET_UPSTREAM, RESET_CLIENT = Close(False, True), Close(True, False)

MIN_DIAL_TIMEOUT = 0.001  # seconds; for a dial that starts just before dial.timeout ends

Step = Callable[[ConnectionRecord, Any, Outcome | None], Action | Found]


def read_first(connection: ConnectionRecord, value: bytes, _outcome: Outcome | None) -> Action | Found:
    """Parse everything preread so far: a PROXY header, a TLS hello, or parts of them."""
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
            return _without_hello(connection, data, Outcome.REFUSED_TLS)
        if type(hello) is int:
            if len(data) < client_hello.LIMIT:
                return preread.action._replace(least=offset + hello)
            return _without_hello(connection, data, Outcome.REFUSED_TLS)
        assert type(hello) is client_hello.ClientHello
        connection.hello = hello
        own = connection.frontend
        frontend = preread.choose(hello.server_name, own)
        if frontend is None:
            connection.failure = Outcome.REFUSED_SNI
            return _REFUSED
        if frontend is not own:
            connection.frontend = frontend
            frontend.accounting.routed(connection.bytes_up)
    connection.first = data
    return _READ


def end_preread(connection: ConnectionRecord, value: bytes, outcome: Outcome | None) -> Found:
    """Go on without a hello, after the client's FIN or a silence, to an upstream that takes what is no TLS."""
    assert outcome is not None
    if connection.offset is None:  # a PROXY header may be missing
        connection.failure = outcome
        return _REFUSED
    return _without_hello(connection, value[connection.offset :], outcome)


def _without_hello(connection: ConnectionRecord, data: bytes, refusal: Outcome) -> Found:
    """Pass `data`, which is no hello, to the listener's own upstream, or refuse the connection where none takes it."""
    preread = connection.frontend.preread
    assert preread is not None
    if not preread.passes_others:
        connection.failure = refusal
        return _REFUSED
    connection.first = data
    return _READ


def _read_proxy_header(connection: ConnectionRecord, preread: PrereadFilter[Frontend], value: bytes) -> bool | None:
    """Take the client's address from its PROXY header, and admit it; False: refused. None: the header is incomplete."""
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
        if not preread.trusts(connection.client):
            connection.failure = Outcome.REFUSED_PROXY
            return False
        connection.offset = header.size
        connection.header = header
        if header.source is not None:
            connection.client = header.source
    # That lease was for an unknown client; the client is known now.
    if connection.lease is not None:
        connection.lease.release()
        connection.lease = None
    frontend = connection.frontend
    if frontend.customers is None:
        result = frontend.admission.admit(frontend.index, connection.client)
    else:
        result = admit_by_customer(connection, frontend.customers)
    if not isinstance(result, Lease):
        connection.failure = REFUSAL_OUTCOMES[result]
        return False
    connection.lease = result
    return True


def admit_by_customer(connection: ConnectionRecord, customers: Customers) -> Lease | Refusal | Denied:
    """Find the customer whose a connection is, and admit it as such, or as nobody's."""
    frontend, client, header = connection.frontend, connection.client, connection.header
    customer = customers.find(client[0], header.link_id if header is not None else None)
    if customer == NOBODY:
        return frontend.admission.admit_nobody(frontend.index, client)
    connection.customer = customer
    customers.accepted(customer)
    if connection.bytes_up:  # preread before the customer was known
        customers.moved(customer, connection.bytes_up, 0)
    return frontend.admission.admit_customer(customers, customer, frontend.index, client)


def route(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Found:
    """Choose the targets of a new connection, and take the first."""
    targets = connection.targets
    if targets is None:
        frontend = connection.frontend
        route = frontend.route
        assert route is not None  # a listener without an upstream of its own lets nothing through but to its routes
        targets = route.targets(frontend.clock())
        if targets is None:
            return _UNRESOLVED
        connection.targets = targets
        if not targets:
            connection.target = route.no_address
            connection.failure = Outcome.RESOLVE_FAILED
    if targets:
        connection.target = targets.pop()
        return _ADDRESS
    return _EXHAUSTED


def next_target(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Found:
    """Take the next target, after one whose dial failed or that no source address has a port left for."""
    targets = connection.targets
    if not targets:
        return _EXHAUSTED
    connection.target = targets.pop()
    return _ANOTHER if type(targets) is Attempts else _ADDRESS


def wait(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action:
    """Wait until the upstream's addresses are known."""
    frontend = connection.frontend
    assert frontend.route is not None
    frontend.route.wait(partial(frontend.resume, connection, _RESOLVED))
    return WAIT


def dial(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target, or enter the dial queue if there is no turn now."""
    dial_queue = connection.frontend.dial_queue
    if dial_queue is not None:
        turn = dial_queue.enter(connection)
        if turn is False:
            return _QUEUED
        if turn is not True:
            connection.failure = Outcome.DIAL_QUEUE_FULL if turn.full else Outcome.DIAL_QUEUE_TIMEOUT
            return _EXHAUSTED
    return start_dial(connection, None, None)


def queue(_connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action:
    """Wait in the dial queue for the turn to dial."""
    return WAIT


def start_dial(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target from the source address with the fewest connections to it."""
    frontend, target = connection.frontend, connection.target
    assert target is not None
    now = frontend.clock()
    source = frontend.source_ports.take(target, now)
    if source < 0:
        connection.failure = Outcome.NO_SOURCE_PORT
        return _NO_PORT
    connection.source_number = source
    frontend.balance.dialing(target, now)
    connection.dialed = now
    return target.dials[source]


def redial(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the next target, as `dial` does, within the rest of dial.timeout."""
    return _shorten(connection, dial(connection, None, None))


def take_turn(connection: ConnectionRecord, _value: object, _outcome: Outcome | None) -> Action | Found:
    """Connect to the target after a wait in the dial queue, unless dial.timeout has ended meanwhile."""
    targets = connection.targets
    if type(targets) is Attempts and connection.frontend.clock() >= targets.until:
        connection.failure = Outcome.DIAL_TIMEOUT
        return _EXHAUSTED
    return _shorten(connection, start_dial(connection, None, None))


def _shorten(connection: ConnectionRecord, action: Action | Found) -> Action | Found:
    """Cut a dial's timeout to the rest of dial.timeout; other actions and results are returned unchanged."""
    targets = connection.targets
    if type(action) is not Dial or type(targets) is not Attempts:
        return action
    left = targets.until - connection.dialed
    return action._replace(timeout=max(left, MIN_DIAL_TIMEOUT)) if left < action.timeout else action


def try_next(connection: ConnectionRecord, value: object, outcome: Outcome | None) -> Found:
    """Account for a failed dial and take the next target, unless dial.timeout has ended."""
    if outcome is None:
        outcome = DIAL_OUTCOMES.get(value if isinstance(value, int) else errno.EIO, Outcome.DIAL_FAILED)
    connection.failure, connection.error = outcome, value
    frontend, target, source = connection.frontend, connection.target, connection.source_number
    assert target is not None and connection.targets is not None and frontend.route is not None
    connection.source_number = -1
    frontend.source_ports.give_back(target, source)
    now = frontend.clock()
    if outcome in OWN_FAULTS:
        frontend.balance.closed(target)
        if outcome is Outcome.NO_SOURCE_PORT:
            frontend.source_ports.mark_exhausted(target, source, now)
            connection.targets.append(target)  # another source address may have a port left
        else:
            connection.targets = []  # another target would lack the same resource
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
        # The first failure. Most connections succeed at their first dial, and never store or compare a deadline.
        until = connection.dialed + frontend.dial_timeout if frontend.dial_timeout else NEVER
        targets = connection.targets = Attempts(targets, until)
    if now >= targets.until:
        connection.failure = Outcome.DIAL_TIMEOUT
        targets.clear()
        frontend.route.failing(now)
        return _EXHAUSTED
    return next_target(connection, None, None)


def pump(connection: ConnectionRecord, value: Address | None, _outcome: Outcome | None) -> Action:
    """Let bytes flow now that the upstream is connected; preread bytes go first."""
    connection.connected = connection.frontend.clock()
    connection.source = value
    connection.targets = connection.error = None  # earlier failures no longer matter
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
    """Build the PROXY header for the upstream, with the client's address and the one that it connected to."""
    frontend, header = connection.frontend, connection.header
    if header is not None:
        source, destination = header.source, header.destination
    else:
        source, destination = connection.client, frontend.local_address(connection)
    if source is None or destination is None:
        return proxy_header.build(frontend.send_proxy, None, None)
    return proxy_header.build(frontend.send_proxy, source, destination)


def close(connection: ConnectionRecord, outcome: Outcome | None, up: int, down: int) -> None:
    """End a connection, only here: give back what it holds, and account for it.

    `up` and `down` are the bytes received since the last call of `moved`.
    """
    if connection.outcome is not None:
        return  # a defect after the end, perhaps caused by it
    outcome = outcome or connection.failure or Outcome.INTERNAL_ERROR
    if connection.lease is not None:
        connection.lease.release()
    frontend = connection.frontend
    if connection.source_number >= 0:
        assert connection.target is not None
        frontend.source_ports.give_back(connection.target, connection.source_number)
        frontend.balance.closed(connection.target)
    if frontend.dial_queue is not None:
        frontend.dial_queue.leave(connection)
    connection.targets = None
    connection.outcome = outcome
    frontend.accounting.closed(connection, outcome, up, down)
    if connection.customer != NOBODY and frontend.customers is not None:
        frontend.customers.moved(connection.customer, up, down)
        frontend.customers.closed(connection.customer, outcome)
