"""Upstreams that refuse, do not answer, reset or are only half there."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.support.clients import connect, echoes, exchange, receive, refused, was_reset
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, refusing, resetter, unanswering

Unharmed = Callable[..., AbstractContextManager[None]]


def test_an_upstream_that_refuses(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with refusing() as dead:
        relay = start(settings(listener(dead), listener(echo.address, name="echo")))
        with unharmed(relay, "echo"):
            for _ in range(20):
                assert refused(relay.address())
            relay.wait_outcomes({"dial_refused": 20})


def test_an_upstream_that_does_not_answer(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with unanswering() as silent:
        toml = settings(listener(silent), listener(echo.address, name="echo"), tables="[dial]\nconnect_timeout = 0.4\n")
        relay = start(toml)
        with unharmed(relay, "echo"):
            started = time.monotonic()
            with connect(relay.address()) as client:
                client.sendall(b"hello?")
                assert echoes(relay.address("echo"))
                assert was_reset(client)
            assert time.monotonic() - started >= 0.4
            relay.wait_outcomes({"dial_timeout": 1, "ok": 1})


def test_the_next_upstream_is_tried(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with refusing() as dead, unanswering() as silent:
        toml = settings(listener(dead, silent, echo.address), tables="[dial]\nconnect_timeout = 0.2\n")
        relay = start(toml)
        with unharmed(relay):
            for _ in range(6):
                assert echoes(relay.address())
            relay.wait_outcomes({"ok": 6})


def test_a_reset_of_the_upstream_is_a_reset_for_the_client(start: Start) -> None:
    with Upstream(resetter(5)) as upstream:
        relay = start(settings(listener(upstream.address)))
        with connect(relay.address()) as client:
            client.sendall(b"hello")
            assert was_reset(client)
        relay.wait_outcomes({"upstream_reset": 1})


def test_a_reset_in_the_middle_of_an_answer(start: Start) -> None:
    def breaks_off(sock: socket.socket) -> None:
        receive(sock, 5)
        sock.sendall(b"x" * 100_000)
        receive(sock, 5)  # the client has all of it
        resetter(0)(sock)

    with Upstream(breaks_off) as upstream:
        relay = start(settings(listener(upstream.address)))
        with connect(relay.address()) as client:
            client.sendall(b"hello")
            assert len(receive(client, 100_000)) == 100_000
            client.sendall(b"again")
            assert was_reset(client)
        relay.wait_outcomes({"upstream_reset": 1})
        (line,) = relay.access(1)
        assert (line["bytes_up"], line["bytes_down"]) == (10, 100_000)


def test_a_client_that_gave_up_while_the_upstream_was_dialled_is_let_go(start: Start) -> None:
    with unanswering() as silent:
        relay = start(settings(listener(silent), tables="[dial]\nconnect_timeout = 30.0\n"))
        with connect(relay.address()) as client:
            relay.wait_active(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        relay.wait_outcomes({"client_abort": 1})


def test_bytes_sent_before_the_upstream_answered_are_delivered(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as slow:
        # Its queue is full; it answers when the kernel tries again, after the first one was taken.
        filler = connect(slow.getsockname())
        relay = start(settings(listener(slow.getsockname())))
        with filler, connect(relay.address()) as client:
            client.sendall(b"early" * 1000)
            relay.wait_active(1)
            slow.accept()[0].close()
            slow.settimeout(10)
            upstream, _ = slow.accept()
            with upstream:
                upstream.settimeout(10)
                assert receive(upstream, 5000) == b"early" * 1000
                upstream.sendall(b"late")
                assert receive(client, 4) == b"late"
        relay.wait_outcomes({"ok": 1})


def test_an_upstream_that_comes_back(start: Start) -> None:
    with refusing() as address:
        relay = start(settings(listener(address)))
        assert refused(relay.address())
    with Echo(*address), connect(relay.address()) as client:
        assert exchange(client) == b"ping"
    relay.wait_outcomes({"dial_refused": 1, "ok": 1})
