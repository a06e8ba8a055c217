"""Unresponsive peers, told apart from slow ones: with made-up states of the kernel, and with real readers."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.engines import lingering
from relay.engines.contract import NEVER, Event, Handler, TcpOptions
from relay.engines.preread import PrereadBuffer
from relay.engines.tcp_state import PeerState, peer_state
from relay.engines.unresponsive import CHECKS, STILL, UnresponsivePeers, unanswered_since
from tests.engines.lab import Couple, Lab
from tests.engines.peers import (
    Sending,
    end,
    pattern,
    push,
    reappear,
    receive,
    receive_to_end,
    receive_to_reset,
    repeated,
    unacknowledged,
    vanish,
)
from tests.engines.running import RunningEngine

TIMEOUT = 8.0  # seconds
EVERY = TIMEOUT / CHECKS
NOTHING, PENDING, PROBED = PeerState(False, False, 0.0), PeerState(True, False, 500.0), PeerState(True, True, 500.0)


@dataclass(eq=False)
class Side:
    fd: int
    received: int = 10
    ended: bool = False
    dropping: bool = False
    finished: bool = False


@dataclass(eq=False)
class Link:
    active: float
    client: Side = field(default_factory=lambda: Side(1))
    upstream: Side | None = field(default_factory=lambda: Side(2))
    handler: Handler = field(init=False)
    settled: bool | None = True
    deadline: float = NEVER
    preread: PrereadBuffer | None = None

    @property
    def seen(self) -> int:
        assert self.upstream is not None
        return self.client.received + self.upstream.received

    @seen.setter
    def seen(self, _total: int) -> None:
        raise AttributeError("it follows from the bytes")


class Watch:
    """UnresponsivePeers with a manual clock, and one connection whose peers' states the test sets."""

    def __init__(self) -> None:
        self.unresponsive: UnresponsivePeers[Link] = UnresponsivePeers(TIMEOUT, self._state)
        self.peers = {1: NOTHING, 2: NOTHING}
        self.reads = 0
        self.now = 1000.0
        self.link = Link(self.now + EVERY - STILL / 2)  # not still at the first check
        self.unresponsive.add([self.link])
        self.check()  # learns how many bytes have come

    def check(self, seconds: float = EVERY) -> list[bool]:
        """Run a round of checks `seconds` later; for each lost peer, True if it is the client."""
        self.now += seconds
        lost: list[tuple[Link, bool]] = []
        while self.unresponsive.start_round(self.now):
            lost += self.unresponsive.check(1, lambda _link: True, self.now)
        return [is_client for _, is_client in lost]

    def _state(self, fd: int) -> PeerState:
        self.reads += 1
        return self.peers[fd]


@pytest.mark.parametrize("is_client", [True, False])
def test_a_peer_that_does_not_answer_is_lost_in_time_and_not_before(is_client: bool) -> None:
    watch = Watch()
    watch.peers[1 if is_client else 2] = PROBED
    watch.link.active = watch.now + 0.5  # the last bytes went to it then
    while watch.now + EVERY < watch.link.active + TIMEOUT:
        assert not watch.check()
    assert watch.check() == [is_client]
    assert watch.now < watch.link.active + TIMEOUT + EVERY
    assert not watch.check()


def test_a_peer_with_nothing_pending_is_not_read_again_before_bytes_move() -> None:
    watch = Watch()
    watch.check()
    assert watch.reads == 2
    watch.peers[1] = PROBED
    watch.check()
    assert watch.reads == 2
    watch.unresponsive.add([watch.link])
    watch.check()
    assert watch.reads == 4


def test_a_peer_from_which_bytes_come_is_not_read() -> None:
    watch = Watch()
    watch.peers = {1: PROBED, 2: PROBED}
    for _ in range(10 * CHECKS):
        watch.link.client.received += 1
        assert watch.link.upstream is not None
        watch.link.upstream.received += 1
        watch.unresponsive.add([watch.link])
        watch.link.active = watch.now + EVERY
        assert not watch.check()
    assert not watch.reads
    assert watch.link.upstream is not None
    while not (lost := watch.check()):  # until none come any more
        assert watch.now < watch.link.active + TIMEOUT + EVERY
    assert lost == [True]


def test_a_closed_window_is_no_loss_and_a_probe_without_an_answer_is() -> None:
    watch = Watch()
    watch.peers[1] = PENDING
    assert not any(watch.check() for _ in range(100))
    watch.peers[1] = PROBED
    assert not any(watch.check() for _ in range(CHECKS - 1))
    assert watch.check() == [True]


def test_without_a_timeout_no_peer_is_read() -> None:
    watch = Watch()
    watch.unresponsive.set_timeout(0.0)
    watch.unresponsive.add([watch.link])
    assert not watch.check()
    assert not watch.reads


CHECK = st.tuples(st.floats(0, 20), st.booleans(), st.booleans(), st.floats(0, 40), st.floats(0, 1))


@given(st.lists(CHECK, max_size=40))
def test_no_peer_is_lost_that_has_answered_or_has_nothing_pending(
    checks: list[tuple[float, bool, bool, float, float]],
) -> None:
    since, now, well = NEVER, 1000.0, 1000.0
    for seconds, pending, probed, silent, part in checks:
        before, now = now, now + seconds
        moved = before + part * (now - before)  # something was sent then
        since = unanswered_since(since, PeerState(pending, probed, silent), moved, now)
        assert (since == NEVER) == (not pending)
        well = now if not pending or not probed else max(well, now - silent)
        assert since == NEVER or since >= well


@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=200))
def test_a_peer_that_never_answers_is_lost_however_often_it_is_checked(checks: list[float]) -> None:
    since, now, sent = NEVER, 1000.0, 1000.0
    for seconds in checks:
        now += seconds
        since = unanswered_since(since, PeerState(True, True, now - 1.0), sent, now)
        assert since == sent


def test_what_the_kernel_knows() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(server.getsockname())
        there, _ = server.accept()
        with there:
            assert not peer_state(there.fileno()).pending
            there.setblocking(False)
            push(there, bytes(65536), 0)
            full = peer_state(there.fileno())
            assert full.pending
            assert full.silent < 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert peer_state(datagrams.fileno()) == NOTHING


# --- real readers ---------------------------------------------------------------------------------------------------

SLOW = TcpOptions(user_timeout=0.4)


def wait_seconds(engine: RunningEngine, seconds: float) -> None:
    """Wait until `seconds` have passed on the engine's clock."""
    end_at = engine.call(engine.loop.time) + seconds
    engine.wait(lambda: engine.loop.time() >= end_at, "time passes")


def narrow_client(lab: Lab, engine: RunningEngine) -> tuple[socket.socket, socket.socket]:
    """A client with a small window, and its upstream."""
    couple = lab.line(engine, buffers=4096).open()
    return couple.client, couple.upstream


def test_a_slow_reader_is_not_lost(lab: Lab) -> None:
    """It takes a little all the while, and its window is closed most of the time."""
    engine = lab.start(tcp=SLOW)
    client, upstream = narrow_client(lab, engine)
    data = pattern("slow", 400_000)
    sending = Sending(upstream, [data], then_end=False)
    received = b""
    for _ in range(20):
        received += client.recv(1000)
        wait_seconds(engine, 0.15)
    received += receive(client, len(data) - len(received))
    assert received == data
    sending.finish()
    end(client)
    assert receive_to_end(upstream) == b""
    upstream.close()
    assert engine.ended(next(iter(engine.handlers.values()))) == (Event.FINISHED,)


def test_a_reader_that_pauses_is_not_lost(lab: Lab) -> None:
    engine = lab.start(tcp=SLOW)
    client, upstream = narrow_client(lab, engine)
    data = pattern("pause", 400_000)
    sending = Sending(upstream, [data], then_end=False)
    wait_seconds(engine, 3.0)
    assert receive(client, len(data)) == data
    sending.finish()


def lose_after_its_end(engine: RunningEngine, couple: Couple, culprit: str) -> tuple[socket.socket, bytes]:
    """One side sends much, then FIN, and vanishes until it is lost. Returns the other, and what it has yet to read."""
    client, upstream, handler = couple
    this, other = (client, upstream) if culprit == "client" else (upstream, client)
    data, sent = pattern(culprit, 65_537), 0
    while not engine.engine.held:
        sent += this.send(data[sent % len(data) :])
        engine.wait(lambda: not unacknowledged(this), "the engine's kernel has it")
    end(this)
    engine.wait(lambda: not unacknowledged(this), "the engine's kernel has the end")
    vanish(this)
    other.sendall(b"x")
    wait_seconds(engine, 2.0)  # by now it is lost
    assert not handler.endings
    return other, repeated(data, sent)


@pytest.mark.parametrize("culprit", ["client", "upstream"])
def test_one_that_vanishes_after_its_end_truncates_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    """The lost side has sent everything, and will never acknowledge what the other one still sends."""
    monkeypatch.setattr(lingering, "LINGER", 600.0)  # however slow the machine is
    engine = lab.start(tcp=SLOW)
    couple = lab.line(engine, buffers=65536).open()
    other, said = lose_after_its_end(engine, couple, culprit)
    assert receive_to_end(other) == said
    end(other)
    assert engine.ended(couple.handler) == (
        Event.CLIENT_LOST if culprit == "client" else Event.UPSTREAM_LOST,
        errno.ETIMEDOUT,
    )
    engine.wait_gone()


@pytest.mark.parametrize("culprit", ["client", "upstream"])
def test_one_that_comes_back_after_it_was_lost_sees_no_clean_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    monkeypatch.setattr(lingering, "LINGER", 600.0)  # however slow the machine is
    engine = lab.start(tcp=SLOW)
    couple = lab.line(engine, buffers=65536).open()
    client, upstream, handler = couple
    this, other = (client, upstream) if culprit == "client" else (upstream, client)
    this.sendall(b"request")
    end(this)
    assert receive_to_end(other) == b"request"
    engine.wait(lambda: not unacknowledged(this), "the engine's kernel has the end")
    vanish(this)
    other.sendall(b"a part of the answer")
    wait_seconds(engine, 2.0)  # by now it is lost
    assert not handler.endings
    other.sendall(b"and the rest")
    end(other)
    assert engine.ended(handler) == (Event.CLIENT_LOST if culprit == "client" else Event.UPSTREAM_LOST, errno.ETIMEDOUT)
    engine.wait_gone()
    reappear(this)
    this.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # it asks whether anybody is there
    this.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    receive_to_reset(this)


@pytest.mark.parametrize("culprit", ["client", "upstream"])
def test_the_other_one_may_vanish_as_well(lab: Lab, culprit: str) -> None:
    engine = lab.start(tcp=SLOW)
    couple = lab.line(engine, buffers=65536).open()
    other, _ = lose_after_its_end(engine, couple, culprit)
    vanish(other)
    assert engine.ended(couple.handler) == (
        Event.UPSTREAM_LOST if culprit == "client" else Event.CLIENT_LOST,
        errno.ETIMEDOUT,
    )
    engine.wait_gone()
