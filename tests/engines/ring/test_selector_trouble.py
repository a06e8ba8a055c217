"""The ring's selector and its loop in trouble: calls that fail, other threads, a ring that closes, debug mode."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import selectors
import threading
from collections.abc import Callable
from time import monotonic

import pytest

from relay.engines.ring import uring
from relay.engines.ring.selector import RingLoop, RingSelector
from tests.engines.ring.traffic import Pair, Traffic
from tests.support.observe import PATIENCE

WRITE = selectors.EVENT_WRITE


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
