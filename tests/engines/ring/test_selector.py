"""The ring's selector and its loop, where CPython's cases do not look: what the ring adds, and what it must not do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import selectors
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from relay.engines.ring.selector import RingLoop, RingSelector
from tests.engines.ring.traffic import Pair, Traffic
from tests.support.observe import PATIENCE

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
IDLE = 0.2  # seconds of a wait in which nothing happens
LOOP_TURNS = 6  # of asyncio for a task that sleeps once: two for its start, two for the timer, two for its end


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0004, 0.001, 0.005, 0.05])
def test_a_wait_is_not_over_early(selector: RingSelector, seconds: float) -> None:
    for _ in range(5):
        began = monotonic()
        assert selector.select(seconds) == []
        assert monotonic() - began >= seconds


def test_a_timer_is_not_early(loop: RingLoop) -> None:
    resolution = 1e-6  # asyncio runs what is due within its clock's resolution, a nanosecond here
    for _ in range(5):
        began = monotonic()
        loop.run_until_complete(asyncio.sleep(0.005))
        assert monotonic() - began >= 0.005 - resolution


@pytest.mark.parametrize(("first", "second"), [(PATIENCE, 0.02), (0.02, 0.1), (0.05, 0.05)])
def test_each_wait_has_its_own_time(selector: RingSelector, pair: Pair, first: float, second: float) -> None:
    """The ring has one timer, which may be set for the wait before when that has ended early."""
    near, far = pair
    key = selector.register(near, READ)
    far.send(b"x")
    assert selector.select(first) == [(key, READ)]
    near.recv(1)
    for _ in range(3):
        began = monotonic()
        assert selector.select(second) == []
        assert second <= monotonic() - began < PATIENCE


def test_no_wait_sees_what_is_ready_and_does_not_wait(selector: RingSelector, pair: Pair) -> None:
    near, far = pair
    key = selector.register(near, READ)
    assert selector.select(0) == []
    assert selector.select(-1) == []
    far.send(b"x")
    assert selector.select(0) == [(key, READ)]
    assert selector.select(-1) == [(key, READ)]


def test_an_idle_wait_does_not_spin(selector: RingSelector, pair: Pair) -> None:
    selector.register(pair[0], READ)
    before = selector.reactor.turns
    assert selector.select(IDLE) == []
    # The kernel counts in nanoseconds and may cut the last one off: the wait is then finished by a second turn.
    assert selector.reactor.turns - before <= 2


def test_an_idle_loop_does_not_spin(loop: RingLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))
    reactor = loop.ring_selector.reactor
    before = reactor.turns
    loop.run_until_complete(asyncio.sleep(IDLE))
    assert reactor.turns - before <= LOOP_TURNS


# --- readiness --------------------------------------------------------------------------------------------------------


def test_a_descriptor_that_stays_readable_is_told_again(selector: RingSelector, pair: Pair) -> None:
    near, far = pair
    key = selector.register(near, READ)
    far.send(b"two")
    for _ in range(3):
        assert selector.select(PATIENCE) == [(key, READ)]
    near.recv(1)
    assert selector.select(PATIENCE) == [(key, READ)], "a part of it is left"
    near.recv(2)
    assert selector.select(0.005) == []
    far.send(b"x")
    assert selector.select(PATIENCE) == [(key, READ)]


def test_all_that_is_ready_is_told_at_once(selector: RingSelector) -> None:
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(10) for end in socket.socketpair()]
        keys = [selector.register(end, READ | WRITE) for end in ends]
        ends[0].send(b"x")
        assert dict(selector.select(PATIENCE)) == dict.fromkeys(keys, WRITE) | {keys[1]: READ | WRITE}


@pytest.mark.parametrize("what", ["closed", "file", "folder"])
def test_a_descriptor_that_cannot_be_waited_for_is_refused(selector: RingSelector, tmp_path: Path, what: str) -> None:
    descriptor = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR if what == "file" else os.O_RDONLY)
    try:
        if what == "closed":
            os.close(descriptor)
        with pytest.raises(OSError, match="Bad file" if what == "closed" else "not permitted") as refusal:
            selector.register(descriptor, READ)
        assert refusal.value.errno == (errno.EBADF if what == "closed" else errno.EPERM), "as epoll_ctl(2) says"
        assert descriptor not in selector.get_map()
        assert selector.select(0) == []
    finally:
        if what != "closed":
            os.close(descriptor)


def test_a_descriptor_that_is_unregistered_is_let_go_of_at_once(selector: RingSelector, pair: Pair) -> None:
    """Its peer sees the end though the ring has no turn after that."""
    near, far = pair
    selector.register(near, READ)
    assert selector.select(0) == []
    selector.unregister(near)
    near.close()
    assert far.recv(1) == b""


def test_a_listener_that_is_unregistered_accepts_no_more(selector: RingSelector) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        selector.register(listener, READ)
        assert selector.select(0) == []
        selector.unregister(listener)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(address)


def test_a_descriptor_that_is_closed_while_it_is_registered_is_let_go_of(selector: RingSelector, pair: Pair) -> None:
    near, far = pair
    selector.register(near, READ)
    assert selector.select(0) == []
    near.close()
    assert far.recv(1) == b""
    assert selector.select(0.005) == []
    assert selector.unregister(near).fileobj is near


def test_a_closed_selector_has_no_keys(selector: RingSelector, pair: Pair) -> None:
    key = selector.register(pair[0], READ)
    assert selector.get_key(pair[0]) == key
    selector.close()
    with pytest.raises(RuntimeError):
        selector.get_key(pair[0])
    selector.close()


# --- what happens in the ring -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 0.0, 0.01], ids=["callback", "timer that is due", "timer"])
def test_what_a_completion_schedules_runs_though_traffic_never_pauses(
    loop: RingLoop, pair: Pair, delay: float | None
) -> None:
    ended: list[str] = []

    def end(why: str) -> None:
        ended.append(why)
        loop.stop()

    def schedule() -> None:
        if delay is None:
            loop.call_soon(end, "as scheduled")
        else:
            loop.call_later(delay, end, "as scheduled")

    pair[1].send(b"stays unread")
    Traffic(loop.ring_selector.reactor, pair[0].fileno(), schedule)
    loop.call_later(PATIENCE, end, "patience is over")
    loop.run_forever()
    assert ended == ["as scheduled"]


def test_traffic_alone_does_not_wake_asyncio(loop: RingLoop, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    select = loop.ring_selector.select

    def counted(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        waits.append(timeout)
        return select(timeout)

    monkeypatch.setattr(loop.ring_selector, "select", counted)
    pair[1].send(b"stays unread")
    traffic = Traffic(loop.ring_selector.reactor, pair[0].fileno(), lambda: None)
    loop.run_until_complete(asyncio.sleep(0.05))
    assert len(waits) <= LOOP_TURNS < traffic.completions


def test_asyncio_hears_of_its_descriptors_though_traffic_never_pauses(selector: RingSelector, pair: Pair) -> None:
    pair[1].send(b"stays unread")
    with contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as own:
        own.bind(("127.0.0.1", 0))
        key = selector.register(own, READ)
        Traffic(selector.reactor, pair[0].fileno(), lambda: own.sendto(b"x", own.getsockname()))
        for _ in range(2):
            assert selector.select(PATIENCE) == [(key, READ)]


# --- signals ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def signalled(seconds: float) -> Iterator[None]:
    """This thread gets SIGUSR1 after that many seconds."""
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.start()
    yield
    timer.join()


def test_a_signal_is_handled_and_the_wait_goes_on(selector: RingSelector) -> None:
    handled: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: handled.append(monotonic()))
    try:
        began = monotonic()
        with signalled(0.02):
            assert selector.select(0.2) == []
        assert monotonic() - began >= 0.2
        assert len(handled) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_wakes_a_loop_that_waits_without_end(loop: RingLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    with signalled(0.02):
        loop.run_forever()
    assert loop.remove_signal_handler(signal.SIGUSR1)
