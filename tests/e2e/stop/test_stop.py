"""How a relay ends: SIGTERM closes connections one after the other, a second one or SIGINT all at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from typing import Literal

import pytest

from tests.support.clients import connect, drain, echoes, exchange, receive, was_reset
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Stuck, Upstream, unanswering

QUEUED = 800


def window(seconds: float) -> str:
    return f"[drain]\nwindow = {seconds}\n"


def refuses(relay: Relay) -> bool:
    """Whether nobody listens any more."""
    try:
        connect(relay.address()).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was in the queue when the queue was closed
    return False


def stopped(relay: Relay) -> dict[str, int]:
    (line,) = relay.events("stopped")
    outcomes: dict[str, int] = line["outcomes"]
    return outcomes


def test_without_connections_it_ends_at_once(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60)))
    assert echoes(relay.address())
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    relay.check()
    assert stopped(relay) == {"ok": 1}


def test_an_established_connection_goes_on_and_its_end_is_the_relays(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60)))
    with connect(relay.address()) as first, connect(relay.address()) as second:
        assert exchange(first) == exchange(second) == b"ping"
        relay.signal(signal.SIGTERM)
        # First it says so; a connection that asks whether anybody listens must not be among those that it counts.
        relay.wait_status(lambda status: status["state"] == "draining")
        wait_until(lambda: refuses(relay), what="no new connections")
        for _ in range(5):
            assert exchange(first, b"x" * 100_000) == b"x" * 100_000
        first.close()
        relay.wait_active(1)
        assert relay.process.poll() is None
        assert exchange(second) == b"ping"
    assert relay.wait() == 0
    relay.check()
    (draining,) = relay.events("draining")
    assert (draining["window_seconds"], draining["connections"]) == (60, 2)


def test_while_it_drains_it_is_not_ready_and_healthy(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(60)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGTERM)
        for port in ("admin", "health"):
            wait_until(lambda port=port: relay.get("/readyz", port)[0] == 503, what="not ready")  # type: ignore[misc]
            assert relay.get("/readyz", port) == (503, "draining\n")
            assert relay.get("/livez", port) == (200, "ok\n")
            code, text = relay.get("/healthz", port)
            assert (code, json.loads(text)) == (200, {"ApplicationHealthState": "Healthy"})
        assert relay.status()["state"] == "draining"
        assert relay.metrics().value("relay_draining") == 1
    assert relay.wait() == 0


def test_what_is_left_when_the_window_is_over_is_closed_with_all_that_came(start: Start) -> None:
    stuck = Stuck()

    def sends_and_waits(sock: socket.socket) -> None:
        sock.sendall(b"x" * 30_000)
        stuck(sock)

    with Upstream(sends_and_waits) as upstream:
        relay = start(settings(listener(upstream.address), tables=window(0.5)))
        with connect(relay.address()) as client:
            assert receive(client, 1) == b"x"
            began = time.monotonic()
            relay.signal(signal.SIGTERM)
            assert len(drain(client)) == 29_999  # then FIN
            assert time.monotonic() - began >= 0.5
        assert relay.wait() == 0
        stuck.release()
    relay.check()
    assert stopped(relay) == {"drained": 1}
    (line,) = relay.access(1)
    assert (line["outcome"], line["state"], line["bytes_down"]) == ("drained", "KD", 30_000)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_it_short(echo: Echo, start: Start, second: signal.Signals) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGTERM)
        wait_until(lambda: relay.get("/readyz")[0] == 503, what="draining")
        relay.signal(second)
        assert drain(client) == b""
    assert relay.wait() == 0
    relay.check()
    assert stopped(relay) == {"shutdown": 1}


@pytest.mark.parametrize("to", ["supervisor", "terminal", "unit"])
def test_sigint_ends_at_once(echo: Echo, start: Start, to: Literal["supervisor", "terminal", "unit"]) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60)))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(20)]
        assert all(exchange(client) == b"ping" for client in clients)
        relay.signal(signal.SIGINT, to=to)
        assert all(drain(client) == b"" for client in clients)
        assert relay.wait() == 0
    relay.check()
    assert stopped(relay) == {"shutdown": 20}


def test_sigterm_to_every_process_drains_as_well(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGTERM, to="unit")
        wait_until(lambda: refuses(relay), what="no new connections")
        assert exchange(client) == b"ping"
    assert relay.wait() == 0
    relay.check()
    assert stopped(relay)["ok"] >= 1


def test_sigint_while_a_connection_is_being_dialled(start: Start) -> None:
    with unanswering() as silent:
        relay = start(settings(listener(silent), tables="[dial]\nconnect_timeout = 60.0\n"))
        with connect(relay.address()) as client:
            relay.wait_active(1)
            relay.signal(signal.SIGINT)
            assert was_reset(client)
        assert relay.wait() == 0
    relay.check()
    assert stopped(relay) == {"shutdown_dial": 1}
    (line,) = relay.access(1)
    assert (line["outcome"], line["state"]) == ("shutdown_dial", "KC")


def test_connections_in_the_queue_at_sigterm_are_served(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(60)))
    (worker,) = relay.worker_pids()
    os.kill(worker, signal.SIGSTOP)  # nobody accepts
    with ExitStack() as stack:
        # Many more than a worker accepts before it looks at what else there is.
        clients = [stack.enter_context(connect(relay.address())) for _ in range(QUEUED)]
        relay.signal(signal.SIGTERM)
        wait_until(lambda: relay.get("/readyz")[0] == 503, what="draining")
        os.kill(worker, signal.SIGCONT)
        assert all(exchange(client) == b"ping" for client in clients)
    assert relay.wait() == 0
    relay.check()
    # The oldest may have had their turn to be closed by then.
    assert sum(count for label, count in stopped(relay).items() if label in ("ok", "drained")) == QUEUED


def test_a_worker_that_does_not_answer_is_ended_by_force(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors |= {"worker killed", "worker died"}
    with ExitStack() as stack:
        for _ in range(10):
            assert exchange(stack.enter_context(connect(relay.address()))) == b"ping"
        relay.wait_active(10)
        victim = relay.status()["workers"][0]
        os.kill(victim["pid"], signal.SIGSTOP)
        relay.signal(signal.SIGINT)
        assert relay.wait(20) == 0
    relay.check()
    counts = {"shutdown": 10 - victim["active"], "worker_died": victim["active"]}
    assert stopped(relay) == {label: count for label, count in counts.items() if count}


def test_a_signal_right_after_the_start_leaves_nothing_behind(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors.add("worker died")
    victim = relay.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    # Its successor is an interpreter that has only just begun when the terminal's Ctrl-C reaches it.
    relay.wait_status(lambda status: status["workers"][0]["pid"] not in (None, victim), what="a successor")
    relay.signal(signal.SIGINT, to="terminal")
    assert relay.wait() == 0
    relay.check()
