"""What a start says, and where the relay can be reached after it."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support.clients import connect, echoes, exchange, refused
from tests.support.harness import Start
from tests.support.programs import free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, sender


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback on this machine")


def test_the_number_of_connections_that_the_start_log_names_is_the_number_that_fits(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)), descriptors=100)
    (starting,) = relay.events("starting")
    assert starting["descriptors"] == 100
    fits = starting["max_connections"]
    assert 0 < fits <= 50
    with contextlib.ExitStack() as stack:
        for _ in range(fits):
            assert exchange(stack.enter_context(connect(relay.address()))) == b"ping"
        assert refused(relay.address())
        assert max(relay.descriptors().values()) <= 100
        # The margin is for what a worker needs besides, not for leaks.
        assert relay.status()["accept_pauses"] == 0
    relay.wait_outcomes({"ok": fits, "refused_capacity": 1})


def test_a_limit_beyond_the_descriptors_is_said(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables="[limits]\nmax_connections = 400"), descriptors=200)
    warnings = [line["event"] for line in relay.log_lines() if line.get("level") == "warning"]
    assert len(warnings) == 1
    assert "limits.max_connections is 400" in warnings[0]
    assert str(relay.status()["max_connections"]) in warnings[0]


def test_as_many_workers_as_set_each_with_the_engine_that_is_said(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=3))
    (starting,) = relay.events("starting")
    assert starting["workers"] == 3
    assert starting["pid"] == relay.process.pid
    pids = relay.worker_pids()
    assert len(set(pids)) == 3
    assert [line["pid"] for line in sorted(relay.events("worker ready"), key=lambda line: line["worker"])] == pids
    assert relay.events("ready")


def test_several_addresses_of_one_listener_and_several_listeners(echo: Echo, start: Start) -> None:
    with Upstream(sender(b"other")) as other:
        relay = start(
            settings(
                listener(echo.address, name="a", bind=["127.0.0.1:0", "127.0.0.2:0"]),
                listener(other.address, name="b"),
            )
        )
        assert echoes(relay.address("a", 0))
        assert echoes(relay.address("a", 1))
        with connect(relay.address("b")) as client:
            assert client.recv(100) == b"other"
    relay.wait_status(lambda status: status["connections"]["active"] == 0)
    assert [item["accepted"] for item in relay.status()["listeners"]] == [2, 1]


def test_an_address_beside_the_wildcard_of_its_port(echo: Echo, start: Start) -> None:
    """Both are listened on, and the kernel prefers the more specific one."""
    port = free_port()
    with Upstream(sender(b"specific")) as specific:
        first = listener(specific.address, name="one", bind=[f"127.0.0.2:{port}"])
        start(settings(first, listener(echo.address, name="all", bind=[f"0.0.0.0:{port}"])))
        with connect(("127.0.0.2", port)) as client:
            assert client.recv(100) == b"specific"
        assert echoes(("127.0.0.1", port))


@needs_ipv6
def test_ipv4_and_ipv6_on_the_same_port(echo: Echo, start: Start) -> None:
    with Upstream(sender(b"over six"), host="::1") as six:
        relay = start(settings(listener(six.address, bind=["[::1]:0"]), listener(echo.address, name="four")))
        host, port = relay.address()
        assert host == "::1"
        with connect((host, port)) as client:
            assert client.recv(100) == b"over six"
        (line,) = relay.access(1)
        assert line["client"].startswith("[::1]:")
        assert line["source"].startswith("[::1]:")
        assert line["upstream"] == f"[::1]:{six.address[1]}"
        assert echoes(relay.address("four"))


def test_settings_from_the_environment_alone_win_over_the_file(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)), environ={"RELAY_WORKERS": "2"})
    assert len(relay.worker_pids()) == 2
