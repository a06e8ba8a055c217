"""A connection's transition table, driven as an engine drives it, without an engine: every legal course of events.

Whatever comes in whatever order, there is one outcome for each connection, and its place is given back once.
"""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import counters, proxy_header
from relay.core.counters import on_route, unfinished
from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import Close, Dial, Event, Preread, Pump, Wait
from relay.ipc.worker_spec import NO_BUCKET, ProxyProtocol, RouteSpec
from relay.outcome import DIAL_OUTCOMES, Outcome
from relay.worker.connection import steps
from relay.worker.connection.record import Found, State
from relay.worker.connection.target import Target
from relay.worker.connection.transitions import ENDS, STEPS
from tests.core.hellos import hello, records, server_name
from tests.worker.connection.world import ALWAYS, LEGAL, LITERAL, NAME, OTHER_NAME, World

HELLO = records(hello(server_name(b"hub.example")))
PROXIED = proxy_header.build(2, ("192.0.2.77", 1234), ("192.0.2.200", 8883))
PREREAD = [
    *[PROXIED, PROXIED[:14], PROXIED + HELLO, PROXIED[:-1] + b"!", b"PROXY TCP9 "],
    *[HELLO, HELLO[:20], records(hello(server_name(b"other.example"))), records(hello(None)), b"GET / HTTP/1.1"],
]
ROUTES = (
    RouteSpec(0, "other", ("other.example",), ((3, "203.0.113.9", 1),), (OTHER_NAME,), NO_BUCKET, False),
    RouteSpec(1, "rest", ("*.example",), ((4, "rest.example", 1),), (), NO_BUCKET, True),
)
VALUES: dict[Event, list[object]] = {
    Event.PREREAD: [*PREREAD],
    Event.PREREAD_ENDED: [b"", PROXIED, HELLO[:20]],
    Event.PREREAD_TIMEOUT: [b"", PROXIED, HELLO[:20]],
    Event.CONNECTED: [None, ("10.0.0.4", 50000), ("fd00::4", 50000, 0, 0)],
    Event.DIAL_FAILED: [*DIAL_OUTCOMES, errno.ENETUNREACH, errno.EACCES, None],
}


@settings(deadline=None, max_examples=200)
@given(data=st.data(), room=st.integers(1, 4), steps=st.integers(0, 40))
def test_every_connection_has_one_outcome_whatever_happens(data: st.DataObject, room: int, steps: int) -> None:
    addresses = st.sampled_from([(), ("203.0.113.1",), ("203.0.113.1", "203.0.113.2", "2001:db8::1")])
    routes = data.draw(st.sampled_from([(), ROUTES[:1], ROUTES[1:], ROUTES]))
    upstreams = data.draw(st.lists(st.sampled_from([LITERAL, NAME, OTHER_NAME]), min_size=not routes, unique=True))
    known = data.draw(st.dictionaries(st.sampled_from([NAME[1], OTHER_NAME[1]]), addresses))
    sni = data.draw(st.sampled_from([(), ("hub.example",)]))
    proxy: ProxyProtocol = data.draw(st.sampled_from(["off", "accept", "require"]))
    send_proxy = data.draw(st.sampled_from([0, 1, 2]))
    rates = data.draw(st.sampled_from([None, RatePlan(dial=Rate(1.0, 1.0), queue=2, queue_seconds=9.0)]))
    world = World(
        upstreams,
        known,
        LimitPlan(1, room, 100, (0,)),
        sni,
        proxy=proxy,
        send_proxy=send_proxy,
        rates=rates,
        sources=data.draw(st.sampled_from([(), ("192.0.2.1", "192.0.2.2")])),
        ports=data.draw(st.sampled_from([2, 1000])),
        routes=routes,
    )
    for _ in range(steps):
        alive = [connection for connection, action in world.last.items() if LEGAL[type(action)]]
        choice = data.draw(st.integers(0, 2 + 3 * len(alive)))
        if choice == 0 or not alive:
            world.accept()
        elif choice == 1 and world.unanswered:
            world.answer(*data.draw(addresses))
        elif choice == 2 and world.turns:
            world.turn()
        else:
            connection = alive[choice % len(alive)]
            event = data.draw(st.sampled_from(LEGAL[type(world.last[connection])]))
            world.send(connection, event, data.draw(st.sampled_from(VALUES.get(event, [None]))))
        alive = [connection for connection, action in world.last.items() if LEGAL[type(action)]]
        assert world.limits.held() == len(alive), "who is alive holds a place, and nobody else"
        assert unfinished(world.layout, world.block, 0) == len(alive)
        for connection in world.last:
            assert (connection.state is State.CLOSED) == (connection not in alive)
    for connection, action in list(world.last.items()):
        if LEGAL[type(action)]:
            world.send(connection, Event.STOP)
    assert not world.turns, "who is gone does not wait"
    assert world.in_use() == 0
    while world.unanswered:
        before = dict(world.last)
        world.answer("203.0.113.9")
        assert world.last == before, "an answer that comes too late moves nobody"
    assert Counter(id(connection) for connection, _ in world.ended) == Counter(map(id, world.last))
    assert world.counted() == Counter(outcome for _, outcome in world.ended)
    assert world.block[world.layout.listener(0) + counters.ACCEPTED] == len(world.last)
    assert world.limits.held() == 0
    for route in routes:
        start = world.layout.route(route.number)
        taken = [connection for connection in world.last if connection.frontend.route_name == route.name]
        assert world.block[start + counters.ROUTED] == len(taken)
        assert on_route(world.layout, world.block, route.number) == 0


# --- the table -------------------------------------------------------------------------------------------------------

STATES = {
    State.PREREADING: Preread,
    State.RESOLVING: Wait,
    State.QUEUED: Wait,
    State.DIALING: Dial,
    State.PUMPING: Pump,
}


def test_the_table_has_what_an_engine_may_send_and_nothing_else() -> None:
    in_table = {(state, event) for state, event in (*STEPS, *ENDS) if isinstance(event, Event)}
    legal = {(state, event) for state, action in STATES.items() for event in LEGAL[action]}
    # A step that fails leaves the connection in between; the same events are there for that.
    legal |= {(state, event) for state in (State.ROUTING,) for event in ALWAYS}
    # The step that was to end it failed: there must be an answer then, too.
    legal.add((State.CLOSED, Event.DEFECT))
    assert in_table == legal


def test_the_short_way_is_what_the_table_says() -> None:
    """`transitions._route_and_dial` does not look up the steps that nearly every connection takes."""
    assert STEPS[State.PREREADING, Found.READ] == (State.ROUTING, steps.route, None)
    assert STEPS[State.ROUTING, Found.ADDRESS] == (State.DIALING, steps.dial, None)


def test_nothing_leads_out_of_closed() -> None:
    assert not any(state is State.CLOSED for state, _ in STEPS)


def test_a_defect_after_the_end_is_no_second_outcome() -> None:
    world = World([LITERAL], {}, LimitPlan(1, 1, 100, (0,)))
    connection = world.accept()
    connection.advance(Event.STOP)
    assert connection.advance(Event.DEFECT) == Close(True, True)
    assert world.counted() == Counter([Outcome.SHUTDOWN_DIAL])


def test_every_state_can_be_reached() -> None:
    reached = {State.PREREADING}
    while True:
        following = reached | {following for (state, _), (following, _, _) in STEPS.items() if state in reached}
        following |= {State.CLOSED for state, _ in ENDS if state in reached}
        if following == reached:
            break
        reached = following
    assert reached == set(State)
    assert {event for _, event in (*STEPS, *ENDS)} == set(Event) | set(Found)


# --- which side sees what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "action"),
    [
        (Event.FINISHED, Close()),
        (Event.STOP, Close()),
        (Event.DRAINED, Close()),
        (Event.AGED, Close()),
        (Event.CLIENT_RESET, Close(reset_client=False, reset_upstream=True)),
        (Event.UPSTREAM_RESET, Close(reset_client=True, reset_upstream=False)),
        (Event.IDLE, Close(True, True)),
        (Event.CLIENT_LOST, Close(True, True)),
        (Event.UPSTREAM_LOST, Close(True, True)),
    ],
)
def test_a_stream_that_was_cut_does_not_look_complete(event: Event, action: Close) -> None:
    world = World([LITERAL])
    connection = world.accept()
    assert world.send(connection, Event.CONNECTED, None) == Pump()
    assert world.send(connection, event) == action


# --- defects ---------------------------------------------------------------------------------------------------------


class Bug(Exception):
    """Stands for any mistake in the relay itself."""


def test_a_defect_while_a_connection_is_set_up_ends_it_with_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World([NAME])

    def broken(now: float) -> list[Target] | None:
        raise Bug

    monkeypatch.setattr(world.frontend.route, "targets", broken)
    with pytest.raises(Bug):
        world.accept()
    assert world.counted() == {Outcome.INTERNAL_ERROR: 1}
    assert world.limits.held() == 0


def test_a_defect_after_waiting_ends_the_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World([NAME])
    connection = world.accept()

    def broken(now: float) -> list[Target] | None:
        raise Bug

    monkeypatch.setattr(world.frontend.route, "targets", broken)
    world.answer("203.0.113.1")
    assert world.last[connection] == Close(True, True)
    assert world.outcome(connection) is Outcome.INTERNAL_ERROR
    assert world.limits.held() == 0
    assert "Bug" in caplog.text, "the log has the traceback"


# --- bytes -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)), max_size=10))
def test_bytes_are_counted_once_however_often_they_are_reported(moves: list[tuple[int, int]]) -> None:
    world = World([LITERAL])
    connection = world.accept()
    world.send(connection, Event.CONNECTED, None)
    up = down = 0
    for more_up, more_down in moves:
        up, down = up + more_up, down + more_down
        connection.moved(up, down)
        connection.moved(up, down)
    start = world.layout.listener(0)
    assert (connection.bytes_up, connection.bytes_down) == (up, down)
    assert world.block[start + counters.BYTES_UP] == up
    assert world.block[start + counters.BYTES_DOWN] == down
