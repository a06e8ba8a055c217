"""The ring's selector and its loop, where CPython's cases do not look: what the ring adds, and what it must not do."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from relay.engines.ring import abi, uring
from relay.engines.ring.reactor import POLL_IN, SLOT_BITS, Reactor
from relay.engines.ring.selector import RingLoop, RingSelector
from tests.observe import PATIENCE

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
IDLE = 0.2  # seconds of a wait in which nothing happens
LOOP_TURNS = 6  # of asyncio for a task that sleeps once: two for its start, two for the timer, two for its end
TRAFFIC = 50  # completions before something is scheduled

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def selector() -> Iterator[RingSelector]:
    with contextlib.closing(RingSelector()) as made:
        yield made


@pytest.fixture
def loop() -> Iterator[RingLoop]:
    with contextlib.closing(RingLoop()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(PATIENCE)
        yield near, far


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


class Traffic:
    """Completions in every turn, without end: a poll of what is readable, made anew as soon as it fires."""

    def __init__(self, reactor: Reactor, descriptor: int, during: Callable[[], object]) -> None:
        self.completions = 0
        self._reactor, self._descriptor, self._during = reactor, descriptor, during
        reactor.handlers[POLL_IN] = self._fired
        self._poll()

    def _poll(self) -> None:
        word = abi.IORING_OP_POLL_ADD | self._descriptor << abi.FD
        self._reactor.push(word, 0, 0, abi.POLLIN << abi.OP_FLAGS, POLL_IN << SLOT_BITS)

    def _fired(self, _user_data: int, result: int, _flags: int) -> None:
        assert result == abi.POLLIN
        self.completions += 1
        if self.completions == TRAFFIC:
            self._during()
        self._poll()


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


# --- errors -----------------------------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., int]:
    """A system call that fails."""

    def call(*_arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EFAULT, errno.ENOMEM], ids=errno.errorcode.get)
def test_an_error_that_should_not_happen_is_raised(
    selector: RingSelector, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert selector.select(0) == []
    with monkeypatch.context() as patch:
        patch.setattr(selector.reactor.ring, "syscall", failing(number))
        with pytest.raises(OSError, match="io_uring_enter") as raised:
            selector.select(PATIENCE)
    assert raised.value.errno == number


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.EBUSY], ids=errno.errorcode.get)
def test_an_error_that_may_happen_does_not_shorten_the_wait(
    selector: RingSelector, pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    key = selector.register(pair[0], WRITE)
    began = monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(selector.reactor.ring, "_enabled", True)
        patch.setattr(selector.reactor.ring, "syscall", failing(number))
        assert selector.select(0.02) == []
    assert monotonic() - began >= 0.02
    assert selector.select(PATIENCE) == [(key, WRITE)], "what was not submitted is submitted by the next turn"


def test_a_loop_that_is_refused_a_ring_raises_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_syscall", failing(errno.EPERM))
    with pytest.raises(PermissionError):
        RingLoop()
    gc.collect()  # asyncio looks at a loop that ends: an exception there is an error of this test


# --- threads, life, debug mode ----------------------------------------------------------------------------------------


def elsewhere(function: Callable[[], object]) -> object:
    """What a function returns, or raises, in a thread of its own."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001 -- of whatever kind: it is the test's to judge
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_a_loop_may_run_in_another_thread_than_made_it(loop: RingLoop) -> None:
    def run() -> str:
        with contextlib.closing(loop):
            return loop.run_until_complete(asyncio.sleep(0.001, "slept"))

    assert elsewhere(run) == "slept"


def test_what_was_under_way_in_a_closed_ring_holds_no_descriptor(pair: Pair) -> None:
    """The kernel keeps a ring for as long as anything refers to it, and the ring keeps what it waits for."""
    near, far = pair

    def run() -> bytes:  # a thread without any other ring: only the first few of a thread are registered with it
        with contextlib.closing(RingSelector()) as selector:
            Traffic(selector.reactor, near.fileno(), lambda: None)
            assert selector.select(0) == []
        near.close()
        return far.recv(1)

    assert elsewhere(run) == b""


@pytest.mark.parametrize("how", ["call_soon", "call_at", "call_later"])
def test_debug_mode_tells_who_scheduled_a_callback(loop: RingLoop, how: str) -> None:
    loop.set_debug(True)
    arguments = () if how == "call_soon" else (0.0,)
    handle = getattr(loop, how)(*arguments, lambda: None)
    assert handle._source_traceback[-1].filename == __file__
