"""Clients that are silent, mad, impatient or gone: each costs what it costs, and no other connection notices."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.support.clients import connect, crowd, drain, echoes, exchange, reset, was_reset
from tests.support.harness import Relay, Start
from tests.support.observe import resident_bytes, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Stuck, Upstream, hash_sink, mute, sender

Unharmed = Callable[..., AbstractContextManager[None]]
IDLE = "[timeouts]\nidle = 0.4\n"


def test_a_client_that_sends_nothing(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address), tables=IDLE))
    with unharmed(relay):
        with connect(relay.address()) as client:
            assert was_reset(client)
        relay.wait_outcomes({"idle_timeout": 1})
    line, _ = relay.access(2)
    assert line["seconds"] >= 0.4


def test_a_client_that_goes_on_is_not_idle(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=IDLE))
    with connect(relay.address()) as busy, connect(relay.address()) as silent:
        # The silent one's end is the clock: while it is waited for, the other one speaks.
        silent.setblocking(False)

        def ended() -> bool:
            assert exchange(busy) == b"ping"
            try:
                return silent.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        wait_until(ended, what="the silent client's end")
        for _ in range(3):
            assert exchange(busy) == b"ping"
    relay.wait_outcomes({"idle_timeout": 1, "ok": 1})


def test_garbage_reaches_the_upstream_unharmed(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address)))
    garbage = [b"\0", b"\xff" * 70_000, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + os.urandom(3000)]
    with unharmed(relay):
        for data in [*garbage, b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", os.urandom(200_000)]:
            assert echoes(relay.address(), data)


def test_a_client_that_resets_at_once(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    with unharmed(relay):
        for _ in range(100):
            reset(connect(relay.address()))
        status = relay.wait_status(lambda status: status["connections"]["accepted"] == 100)
        relay.wait_active(0)
        outcomes = relay.status()["connections"]["outcomes"]
        # Which of the two depends on whether the upstream had answered by then.
        assert outcomes["client_abort"] + outcomes["client_reset"] == 100, status


def test_a_client_that_ends_its_direction_at_once_gets_the_answer(start: Start) -> None:
    with Upstream(hash_sink) as sink, Upstream(sender(b"x" * 3_000_000)) as source:
        relay = start(settings(listener(sink.address, name="sink"), listener(source.address, name="source")))
        for name, size in (("sink", 64), ("source", 3_000_000)):
            with connect(relay.address(name)) as client:
                client.shutdown(socket.SHUT_WR)
                assert len(drain(client)) == size
        relay.wait_outcomes({"ok": 2})


def test_a_port_scan(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    relay = start(settings(listener(echo.address)))
    with unharmed(relay):
        for turn in range(200):
            with connect(relay.address()) as client:
                if turn % 2:
                    client.shutdown(socket.SHUT_WR)
        relay.wait_outcomes({"ok": 200})


def test_two_thousand_at_once(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 5000:
        pytest.skip(f"needs 5000 descriptors; the limit is {soft}")
    relay = start(settings(listener(echo.address), workers=2))
    with unharmed(relay), crowd(relay.address(), 2000) as clients:
        assert (len(clients.served), clients.refused) == (2000, 0)
        relay.wait_active(2000)
        assert echoes(relay.address())
    relay.wait_outcomes({"ok": 2002})


def test_a_client_that_never_reads(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with Upstream(sender(b"x" * 50_000_000)) as source:
        relay = start(settings(listener(echo.address), listener(source.address, name="source")))
        (worker,) = relay.worker_pids()
        before = resident_bytes(worker)
        with unharmed(relay):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(relay.address("source"))) for _ in range(50)]
                wait_until(lambda: _held(relay) >= 50 * 1024, what="every client behind")
                assert echoes(relay.address())
                assert resident_bytes(worker) - before < 16 << 20
                for client in clients:
                    reset(client)
            relay.wait_outcomes({"client_reset": 50, "ok": 1})
            wait_until(lambda: _held(relay) == 0, what="nothing held")


def test_clients_that_push_into_an_upstream_that_never_reads(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    stuck = Stuck()
    with Upstream(stuck) as upstream:
        relay = start(settings(listener(echo.address), listener(upstream.address, name="stuck")))
        (worker,) = relay.worker_pids()
        before = resident_bytes(worker)
        with unharmed(relay):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(relay.address("stuck"))) for _ in range(50)]
                sent = [_push(client) for client in clients]
                assert echoes(relay.address())
                assert resident_bytes(worker) - before < 16 << 20
                stuck.release()
                for client in clients:
                    client.shutdown(socket.SHUT_WR)
                for client in clients:
                    client.settimeout(30)
                    assert drain(client) == b""
            status = relay.wait_outcomes({"ok": 51})
            # Nothing was lost, however long it took to be taken.
            assert status["bytes"]["up"] == sum(sent) + len(b"are you there?")


def test_silent_crowds_do_not_keep_others_out(echo: Echo, start: Start) -> None:
    with Upstream(mute) as upstream:
        relay = start(settings(listener(echo.address), listener(upstream.address, name="mute"), tables=IDLE))
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(connect(relay.address("mute")))
            assert echoes(relay.address())
            relay.wait_outcomes({"idle_timeout": 200, "ok": 1})


def _push(client: socket.socket) -> int:
    """Send until nothing goes on; returns how many bytes went."""
    client.settimeout(0.02)
    total = 0
    with contextlib.suppress(TimeoutError):
        while True:
            total += client.send(b"x" * 65536)
    return total


def _held(relay: Relay) -> int:
    return int(sum(item["held_bytes"] for item in relay.status()["workers"]))
