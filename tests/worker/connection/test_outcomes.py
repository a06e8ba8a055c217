"""Every outcome of a connection, and a course of events that leads to it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from relay.core.access_list import AccessList
from relay.core.customers import UNLIMITED, Customer
from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import Close, Event, Refuse
from relay.ipc.worker_spec import ProxyProtocol
from relay.outcome import OUTCOMES, Outcome
from relay.worker.connection.admission import Admission
from tests.core.hellos import hello, records, server_name
from tests.worker.connection.customer_world import CustomerWorld
from tests.worker.connection.world import CLIENT, LITERAL, NAME, World

HELLO = records(hello(server_name(b"hub.example")))


def refused(plan: LimitPlan) -> Outcome:
    world = World([LITERAL], plan=plan)
    if plan.per_source:
        world.frontend.admission = Admission(world.limits, SourceOne())  # type: ignore[arg-type]
    first, second = world.accept(), world.accept()
    assert world.last[second] == Refuse()
    assert world.send(first, Event.STOP) == Close(True, True)
    return world.outcome(second)


def denied() -> Outcome:
    world = World([LITERAL])
    world.frontend.admission = Admission(world.limits, None, AccessList([], [CLIENT[0]]))
    connection = world.accept()
    assert world.last[connection] == Refuse()
    assert world.limits.held() == 0
    return world.outcome(connection)


def limited(rates: RatePlan) -> Outcome:
    world = World([LITERAL], rates=rates)
    world.frontend.admission._source_hash = SourceOne()  # type: ignore[assignment]
    first, second = world.accept(), world.accept()
    assert world.last[second] == Refuse()
    assert world.send(first, Event.STOP) == Close(True, True)
    assert world.limits.held() == 0
    return world.outcome(second)


def of_customer(most: int = 0, rate: Rate = UNLIMITED) -> Outcome:
    world = CustomerWorld([Customer(0, "contoso", [CLIENT[0]], max_connections=most, rate=rate)])
    first, second = world.accept(), world.accept()
    assert world.last[second] == Refuse()
    assert world.send(first, Event.STOP) == Close(True, True)
    assert world.limits.held() == 0
    return world.outcome(second)


def queued(queue: int, seconds: float) -> Outcome:
    world = World([LITERAL], rates=RatePlan(dial=Rate(1.0, 1.0), queue=queue, queue_seconds=seconds))
    world.accept()
    connection = world.accept()
    assert world.last[connection] == Close(True, True)
    return world.outcome(connection)


def out_of_ports() -> Outcome:
    world = World([LITERAL], ports=2)
    world.accept()
    connection = world.accept()
    assert world.last[connection] == Close(True, True)
    return world.outcome(connection)


class SourceOne:
    """All clients are of one source."""

    def cached(self, _host: str) -> int:
        return 1


def after(*events: Event | tuple[Event, object], connected: bool = False) -> Outcome:
    """The outcome of a connection to a literal address after these events."""
    world = World([LITERAL])
    connection = world.accept()
    if connected:
        world.send(connection, Event.CONNECTED, None)
    for event in events:
        world.send(connection, *event if isinstance(event, tuple) else (event,))
    return world.outcome(connection)


def preread(event: Event, value: object = None, proxy: ProxyProtocol = "off") -> Outcome:
    """The outcome of a connection that is asked for a name, when this is what comes."""
    world = World([LITERAL], sni=("hub.example",), proxy=proxy)
    connection = world.accept()
    world.send(connection, event, value)
    return world.outcome(connection)


def unresolved() -> Outcome:
    world = World([NAME])
    connection = world.accept()
    world.answer()
    return world.outcome(connection)


PRODUCED: dict[Outcome, Callable[[], Outcome]] = {
    Outcome.OK: lambda: after(Event.FINISHED, connected=True),
    Outcome.REFUSED_ACCESS: denied,
    Outcome.REFUSED_INSTANCE: lambda: refused(LimitPlan(1, 1, 9, (0,))),
    Outcome.REFUSED_LISTENER: lambda: refused(LimitPlan(1, 9, 9, (1,))),
    Outcome.REFUSED_SOURCE: lambda: refused(LimitPlan(1, 9, 9, (0,), per_source=1, source_buckets=64)),
    Outcome.REFUSED_SOURCE_RATE: lambda: limited(RatePlan(source=Rate(1.0, 1.0))),
    Outcome.REFUSED_ACCEPT_RATE: lambda: limited(RatePlan(accept=Rate(1.0, 1.0))),
    Outcome.REFUSED_CUSTOMER: lambda: of_customer(most=1),
    Outcome.REFUSED_CUSTOMER_RATE: lambda: of_customer(rate=Rate(1.0, 1.0)),
    Outcome.REFUSED_PROXY: lambda: preread(Event.PREREAD, HELLO, "require"),
    Outcome.DIAL_QUEUE_FULL: lambda: queued(0, 9.0),
    Outcome.DIAL_QUEUE_TIMEOUT: lambda: queued(9, 0.5),
    Outcome.NO_SOURCE_PORT: out_of_ports,
    Outcome.REFUSED_CAPACITY: lambda: refused(LimitPlan(1, 9, 1, (0,))),
    Outcome.REFUSED_TLS: lambda: preread(Event.PREREAD, b"GET / HTTP/1.1"),
    Outcome.REFUSED_SNI: lambda: preread(Event.PREREAD, records(hello(server_name(b"other.example")))),
    Outcome.CLIENT_HELLO_TIMEOUT: lambda: preread(Event.PREREAD_TIMEOUT, b""),
    Outcome.CLIENT_HELLO_ABORT: lambda: preread(Event.PREREAD_ENDED, b""),
    Outcome.RESOLVE_FAILED: unresolved,
    Outcome.DIAL_REFUSED: lambda: after((Event.DIAL_FAILED, errno.ECONNREFUSED)),
    Outcome.DIAL_TIMEOUT: lambda: after(Event.DIAL_TIMEOUT),
    Outcome.DIAL_FAILED: lambda: after((Event.DIAL_FAILED, errno.EHOSTUNREACH)),
    Outcome.NO_RESOURCES: lambda: after((Event.DIAL_FAILED, errno.EMFILE)),
    Outcome.CLIENT_ABORT: lambda: after(Event.CLIENT_RESET),
    Outcome.CLIENT_RESET: lambda: after(Event.CLIENT_RESET, connected=True),
    Outcome.UPSTREAM_RESET: lambda: after(Event.UPSTREAM_RESET, connected=True),
    Outcome.CLIENT_LOST: lambda: after((Event.CLIENT_LOST, errno.ETIMEDOUT), connected=True),
    Outcome.UPSTREAM_LOST: lambda: after((Event.UPSTREAM_LOST, errno.ETIMEDOUT), connected=True),
    Outcome.IDLE_TIMEOUT: lambda: after(Event.IDLE, connected=True),
    Outcome.CLIENT_HALF_CLOSE_TIMEOUT: lambda: after(Event.CLIENT_HALF_CLOSE, connected=True),
    Outcome.UPSTREAM_HALF_CLOSE_TIMEOUT: lambda: after(Event.UPSTREAM_HALF_CLOSE, connected=True),
    Outcome.SHUTDOWN: lambda: after(Event.STOP, connected=True),
    Outcome.SHUTDOWN_DIAL: lambda: after(Event.STOP),
    Outcome.DRAINED: lambda: after(Event.DRAINED, connected=True),
    Outcome.MAX_AGE: lambda: after(Event.AGED, connected=True),
    Outcome.INTERNAL_ERROR: lambda: after(Event.DEFECT, connected=True),
}


@pytest.mark.parametrize("outcome", [o for o in OUTCOMES if o is not Outcome.WORKER_DIED], ids=lambda o: o.label)
def test_each_outcome_has_a_course_that_leads_to_it(outcome: Outcome) -> None:
    assert PRODUCED[outcome]() is outcome


def test_outcomes_are_words_and_haproxys_two_letters() -> None:
    assert len({outcome.label for outcome in OUTCOMES}) == len(OUTCOMES)
    assert [outcome.index for outcome in OUTCOMES] == list(range(len(OUTCOMES)))
    for outcome in OUTCOMES:
        assert outcome.label == outcome.name.lower()
        assert outcome.state == "--" if outcome is Outcome.OK else outcome.state[0] in "CSPRIKcs"
        # Configuration manual 8.5, second letter: R request, Q queue, C connection, H headers, D data, L last data.
        assert outcome.state[1:] in ("-", "R", "Q", "C", "D")


def test_an_error_that_another_address_made_good_is_forgotten() -> None:
    world = World([LITERAL, (2, "198.51.100.2", 8883)])
    connection = world.accept()
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    world.send(connection, Event.CONNECTED, None)
    assert connection.error is None
    connection.end(Event.UPSTREAM_LOST, errno.EHOSTUNREACH, 0, 0)
    assert connection.error == errno.EHOSTUNREACH


def test_a_dial_that_timed_out_did_not_end_with_the_error_before() -> None:
    world = World([LITERAL, (2, "198.51.100.2", 8883)])
    connection = world.accept()
    world.send(connection, Event.DIAL_FAILED, errno.ECONNREFUSED)
    world.send(connection, Event.DIAL_TIMEOUT)
    assert world.outcome(connection) is Outcome.DIAL_TIMEOUT
    assert connection.error is None
