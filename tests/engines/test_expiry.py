"""Expiry: connections past `expires_at` are found, and closed gracefully when the worker asks for it."""

from __future__ import annotations

from time import monotonic

import pytest

from relay.engines import base
from relay.engines.contract import Event, Timeouts, Wait
from tests.engines.lab import Couple, Lab
from tests.engines.peers import receive, receive_to_end
from tests.engines.running import DEADLINE, RunningEngine
from tests.engines.script import Script

CHECKED_OFTEN = Timeouts(idle=600.0, half_close=0.8)  # ten times a second
LONG_AGO = 3600.0  # seconds


@pytest.fixture
def engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> RunningEngine:
    monkeypatch.setattr(base, "GRACEFUL_CLOSE_TIMEOUT", 600.0)
    return lab.start(timeouts=CHECKED_OFTEN)


def close_expired(engine: RunningEngine, count: int) -> int:
    return engine.call(engine.engine.close_expired, count, Event.AGED)


def wait_found(engine: RunningEngine, count: int) -> None:
    """Wait until `count` expired connections are found."""
    deadline = monotonic() + DEADLINE
    while (found := close_expired(engine, 0)) != count:
        assert monotonic() < deadline, f"{found} instead of {count}"
        engine.wait_ticks(1)


def goes_on(couple: Couple) -> None:
    couple.client.sendall(b"ping")
    assert receive(couple.upstream, 4) == b"ping"
    couple.upstream.sendall(b"pong")
    assert receive(couple.client, 4) == b"pong"
    assert not couple.handler.endings


def ends(engine: RunningEngine, couple: Couple) -> None:
    """The connection is closing gracefully: the client sees FIN, then the upstream."""
    assert receive_to_end(couple.client) == b""
    couple.client.close()
    assert receive_to_end(couple.upstream) == b""
    couple.upstream.close()
    assert engine.ended(couple.handler) == (Event.AGED,)


def test_the_earliest_go_first_and_no_more_than_were_asked_for(lab: Lab, engine: RunningEngine) -> None:
    line = lab.line(engine)
    couples = [line.open() for _ in range(6)]
    now = monotonic()
    for number, age in ((5, 40.0), (1, 30.0), (3, 20.0), (2, 10.0)):
        couples[number].handler.expires_at = now - age
    wait_found(engine, 4)
    assert close_expired(engine, 2) == 2
    ends(engine, couples[5])
    ends(engine, couples[1])
    for number in (0, 2, 3, 4):
        goes_on(couples[number])
    assert close_expired(engine, 1) == 1
    ends(engine, couples[3])
    goes_on(couples[2])
    assert close_expired(engine, 9) == 0
    ends(engine, couples[2])
    assert close_expired(engine, 9) == 0
    goes_on(couples[0])
    goes_on(couples[4])


def test_not_before_its_time_and_soon_after_it(lab: Lab, engine: RunningEngine) -> None:
    couple = lab.couple(engine)
    couple.handler.expires_at = at = monotonic() + 0.5
    wait_found(engine, 1)
    assert at <= monotonic() <= at + 2.0
    assert close_expired(engine, 1) == 0
    ends(engine, couple)


def test_one_that_ends_by_itself_does_not_wait_any_more(lab: Lab, engine: RunningEngine) -> None:
    line = lab.line(engine)
    first, second = line.open(), line.open()
    first.handler.expires_at, second.handler.expires_at = 1.0, 2.0
    wait_found(engine, 2)
    first.client.close()
    first.upstream.close()
    assert engine.ended(first.handler) == (Event.FINISHED,)
    assert close_expired(engine, 0) == 1
    assert close_expired(engine, 1) == 0
    ends(engine, second)


def test_one_that_is_closing_gracefully_is_not_queued_and_not_found_again(lab: Lab, engine: RunningEngine) -> None:
    line = lab.line(engine)
    drained, found_first, other = line.open(), line.open(), line.open()
    assert engine.close_gracefully(1) == 1
    drained.handler.expires_at = found_first.handler.expires_at = monotonic() - LONG_AGO
    wait_found(engine, 1)
    assert engine.close_gracefully(1) == 1
    assert close_expired(engine, 0) == 0
    other.handler.expires_at = monotonic() - 1.0  # by the time that it is found, all have been checked
    wait_found(engine, 1)
    assert close_expired(engine, 9) == 0
    ends(engine, other)
    assert engine.engine.connections == 2


def test_one_that_waits_for_an_upstream_is_not_found(lab: Lab, engine: RunningEngine) -> None:
    handler = engine.handler_of(lab.connected(lab.listen(engine, Script(Wait()))))
    handler.expires_at = monotonic() - LONG_AGO
    other = lab.couple(engine)
    other.handler.expires_at = monotonic() - 1.0
    wait_found(engine, 1)
    assert close_expired(engine, 9) == 0
    ends(engine, other)
    assert not handler.endings


def test_traffic_goes_on_while_it_waits(lab: Lab, engine: RunningEngine) -> None:
    couple = lab.couple(engine)
    couple.handler.expires_at = monotonic() - LONG_AGO
    wait_found(engine, 1)
    for _ in range(5):
        goes_on(couple)
        engine.wait_ticks(5)
    assert close_expired(engine, 0) == 1
