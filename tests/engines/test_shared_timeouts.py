"""Timeouts that some connections share in place of the engine's, as those of one listener do."""

from __future__ import annotations

from time import monotonic

from relay.engines.contract import Event, SharedTimeouts, Timeouts
from tests.engines.lab import TCP, Couple, Lab
from tests.engines.peers import end, receive, receive_to_reset
from tests.engines.running import RunningEngine

IDLE = 0.4  # seconds
LONG = Timeouts(idle=600.0, half_close=0.0)
SHORT = Timeouts(idle=IDLE, half_close=0.0)


def open_with(lab: Lab, engine: RunningEngine, timeouts: SharedTimeouts | None) -> Couple:
    line = lab.line(engine)
    line.script.timeouts = timeouts
    return line.open()


def test_each_connection_has_those_that_its_handler_shares(lab: Lab) -> None:
    """One clock: a third connection shows that the shortest has passed for the others as well."""
    engine = lab.start(timeouts=LONG)
    engine.call(engine.engine.configure, LONG, TCP, (SHORT,))
    long, own, off = (
        open_with(lab, engine, timeouts)
        for timeouts in (None, SharedTimeouts(LONG), SharedTimeouts(Timeouts(0.0, 0.0)))
    )
    began = monotonic()
    short = open_with(lab, engine, SharedTimeouts(SHORT))
    assert engine.ended(short.handler) == (Event.IDLE,)
    assert monotonic() - began >= IDLE
    receive_to_reset(short.client)
    for couple in (long, own, off):
        couple.client.sendall(b"x")
        assert receive(couple.upstream, 1) == b"x"
        assert not couple.handler.endings


def test_longer_ones_than_the_engines(lab: Lab) -> None:
    engine = lab.start(timeouts=SHORT)
    kept = open_with(lab, engine, SharedTimeouts(LONG))
    clock = open_with(lab, engine, None)
    assert engine.ended(clock.handler) == (Event.IDLE,)
    kept.client.sendall(b"x")
    assert receive(kept.upstream, 1) == b"x"


def test_half_close_is_shared_too(lab: Lab) -> None:
    engine = lab.start(timeouts=LONG)
    shared = SharedTimeouts(Timeouts(idle=600.0, half_close=IDLE))
    engine.call(engine.engine.configure, LONG, TCP, (Timeouts(600.0, IDLE),))
    other, couple = open_with(lab, engine, None), open_with(lab, engine, shared)
    for one in (other, couple):
        end(one.client)
        assert one.upstream.recv(1) == b""
    receive_to_reset(couple.client)
    assert engine.ended(couple.handler) == (Event.UPSTREAM_HALF_CLOSE,)
    other.upstream.sendall(b"late")
    assert receive(other.client, 4) == b"late"


def test_a_change_holds_for_established_connections_and_at_once(lab: Lab) -> None:
    engine = lab.start(timeouts=LONG)
    shared = SharedTimeouts(LONG)
    couples = [open_with(lab, engine, shared) for _ in range(3)]
    other = open_with(lab, engine, SharedTimeouts(LONG))

    def change() -> None:
        shared.set(SHORT)
        engine.engine.configure(LONG, TCP, (SHORT,))

    engine.call(change)
    for couple in couples:
        assert engine.ended(couple.handler) == (Event.IDLE,)
    other.client.sendall(b"x")
    assert receive(other.upstream, 1) == b"x"


def test_where_no_age_is_set_any_more_no_connection_expires(lab: Lab) -> None:
    """`expires_at` was drawn when it was connected."""
    engine = lab.start(timeouts=Timeouts(idle=600.0, half_close=0.8))
    shared = SharedTimeouts(LONG, ages=False)
    kept, aged = open_with(lab, engine, shared), open_with(lab, engine, SharedTimeouts(LONG))
    kept.handler.expires_at = aged.handler.expires_at = monotonic() - 1.0
    engine.wait(lambda: engine.engine.close_expired(0, Event.AGED) == 1, "one is found")
    engine.wait_ticks(8)
    assert engine.call(engine.engine.close_expired, 5, Event.AGED) == 0
    assert engine.ended(aged.handler) == (Event.AGED,)
    assert not kept.handler.endings
    shared.set(LONG, ages=True)
    engine.wait(lambda: engine.engine.close_expired(0, Event.AGED) == 1, "the other is found")
