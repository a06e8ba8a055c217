"""Every way for a connection to end: its name in the metrics, its line in the access log, and the exact bytes.

Those who vanish need a network that loses their packets: traffic/test_vanishing.py.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket

import pytest

from tests.support.clients import connect, crowd, drain, exchange, receive, refused, reset, was_reset
from tests.support.dns_server import NameServer
from tests.support.harness import Json, Relay, Start
from tests.support.observe import descriptors, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Stuck, Upstream, refusing, resetter, sender, unanswering

TIMEOUTS = "[timeouts]\nidle = 30.0\nhalf_close = 0.4\n"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def ended(relay: Relay, outcome: str, state: str, up: int = 0, down: int = 0, error: str | None = None) -> Json:
    """The access line of the one connection that there was, which ended so; all accounts agree on it."""
    (line,) = relay.access(1)
    assert (line["outcome"], line["state"], line["error"]) == (outcome, state, error)
    assert (line["bytes_up"], line["bytes_down"]) == (up, down)
    assert line["listener"] == "main"
    assert TIME.fullmatch(line["time"])
    metrics = relay.metrics()
    assert metrics.outcomes() == {outcome: 1}
    assert metrics.value("relay_connections_accepted_total", listener="main") == 1
    assert metrics.value("relay_connections_active", listener="main") == 0
    assert metrics.value("relay_bytes_total", listener="main", direction="up") == up
    assert metrics.value("relay_bytes_total", listener="main", direction="down") == down
    assert metrics.value("relay_connection_seconds_count", listener="main") == 1
    return line


def test_ok(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    with connect(relay.address()) as client:
        host, port = client.getsockname()
        assert exchange(client, b"x" * 12_345) == b"x" * 12_345
    line = ended(relay, "ok", "--", 12_345, 12_345)
    upstream = f"{echo.address[0]}:{echo.address[1]}"
    assert line["client"] == f"{host}:{port}"
    assert line["upstream"] == line["address"] == upstream
    assert line["source"].startswith("127.0.0.1:")
    assert line["source"] != line["client"]
    assert 0 < line["connect_seconds"] < line["seconds"] < 10
    assert relay.metrics().value("relay_connect_seconds_count", upstream=upstream) == 1


def test_resolve_failed(start: Start) -> None:
    with NameServer({}) as names:
        relay = start(settings(listener("hub.example:8883"), tables=names.table()), ready=False)
        assert refused(relay.address())
        line = ended(relay, "resolve_failed", "SC")
    assert (line["upstream"], line["address"], line["source"]) == ("hub.example:8883", "", "")
    assert line["connect_seconds"] is None


def test_dial_refused(start: Start) -> None:
    with refusing() as dead:
        relay = start(settings(listener(dead)))
        assert refused(relay.address())
        line = ended(relay, "dial_refused", "SC", error="ECONNREFUSED")
    assert line["address"] == f"{dead[0]}:{dead[1]}"
    assert line["connect_seconds"] is None
    assert relay.metrics().value("relay_connect_seconds_count", upstream=line["upstream"]) == 0


def test_dial_timeout(start: Start) -> None:
    with unanswering() as silent:
        relay = start(settings(listener(silent), tables="[dial]\nconnect_timeout = 0.3\n"))
        with connect(relay.address()) as client:
            assert was_reset(client)
        line = ended(relay, "dial_timeout", "sC")
    assert line["seconds"] >= 0.3


def test_dial_timeout_for_all_addresses_together(start: Start) -> None:
    """Each of them alone would hold the client for half a minute."""
    with unanswering() as one, unanswering() as two:
        toml = settings(listener(one, two), tables="[dial]\nconnect_timeout = 30.0\ntimeout = 0.4\n")
        relay = start(toml)
        with connect(relay.address()) as client:
            assert was_reset(client)
        line = ended(relay, "dial_timeout", "sC")
    assert 0.4 <= line["seconds"] < 30


def test_dial_timeout_with_addresses_left(start: Start) -> None:
    with unanswering() as one, unanswering() as two, unanswering() as three:
        tables = "[dial]\nconnect_timeout = 0.3\ntimeout = 0.5\n"
        relay = start(settings(listener(one, two, three), tables=tables))
        with connect(relay.address()) as client:
            assert was_reset(client)
        line = ended(relay, "dial_timeout", "sC")
        assert line["seconds"] >= 0.5
        # Connection by connection all of them get their turn.
        for _ in range(2):
            with connect(relay.address()) as client:
                assert was_reset(client)
        assert len({line["address"] for line in relay.access(3)}) == 3


def test_dial_failed(start: Start) -> None:
    # Loopback's own broadcast address: nobody can be connected to there.
    with socket.socket() as sock, pytest.raises(OSError) as failure:
        sock.connect(("127.255.255.255", 9))
    relay = start(settings(listener("127.255.255.255:9")))
    assert refused(relay.address())
    ended(relay, "dial_failed", "SC", error=errno.errorcode[failure.value.errno or 0])


def test_no_resources(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    (worker,) = relay.worker_pids()
    used = descriptors(worker)
    free = [number for number in range(used[-1] + 3) if number not in used]
    hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (free[1], hard))  # one for the client, none for the upstream
    assert refused(relay.address())
    ended(relay, "no_resources", "RC", error="EMFILE")


def test_client_abort(start: Start) -> None:
    with unanswering() as silent:
        relay = start(settings(listener(silent), tables="[dial]\nconnect_timeout = 60.0\n"))
        client = connect(relay.address())
        relay.wait_active(1)
        reset(client)
        ended(relay, "client_abort", "CC")


def test_client_reset(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    client = connect(relay.address())
    assert exchange(client, b"x" * 1000) == b"x" * 1000
    reset(client)
    ended(relay, "client_reset", "CD", 1000, 1000)


def test_upstream_reset(start: Start) -> None:
    with Upstream(resetter(1000)) as upstream:
        relay = start(settings(listener(upstream.address)))
        with connect(relay.address()) as client:
            client.sendall(b"x" * 1000)
            assert was_reset(client)
        ended(relay, "upstream_reset", "SD", 1000, 0)


def test_idle_timeout(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables="[timeouts]\nidle = 0.3\n"))
    with connect(relay.address()) as client:
        assert exchange(client, b"abc") == b"abc"
        assert was_reset(client)
    ended(relay, "idle_timeout", "cD", 3, 3)


def test_client_half_close_timeout(start: Start) -> None:
    with Upstream(sender(b"bye")) as upstream:
        relay = start(settings(listener(upstream.address), tables=TIMEOUTS))
        with connect(relay.address()) as client:
            assert drain(client) == b"bye"  # the upstream's FIN; the client does not end
            line = ended(relay, "client_half_close_timeout", "cD", 0, 3)
            # After a FIN a reset shows in what is sent, not in what is received.
            wait_until(lambda: not _takes(client), what="reset")
    assert line["seconds"] >= 0.4


def test_upstream_half_close_timeout(start: Start) -> None:
    stuck = Stuck()
    with Upstream(stuck) as upstream:
        relay = start(settings(listener(upstream.address), tables=TIMEOUTS))
        with connect(relay.address()) as client:
            client.sendall(b"bye")
            client.shutdown(socket.SHUT_WR)
            assert was_reset(client)
        stuck.release()
        line = ended(relay, "upstream_half_close_timeout", "sD", 3, 0)
    assert line["seconds"] >= 0.4


def test_refusals(echo: Echo, start: Start) -> None:
    toml = settings(
        listener(echo.address, name="main", more="max_connections = 1"),
        listener(echo.address, name="other"),
        tables="[limits]\nmax_connections = 4\nmax_connections_per_source = 2\n",
    )
    relay = start(toml)
    with connect(relay.address()) as one, connect(relay.address("other")) as two:
        assert exchange(one) == exchange(two) == b"ping"
        relay.wait_active(2)
        assert refused(relay.address())
        assert refused(relay.address("other"))
        with crowd(relay.address("other"), 1, ["127.0.0.2", "127.0.0.3"]) as more:
            assert len(more.served) == 2
            assert refused(relay.address("other"), "127.0.0.4")
        lines = {(line["outcome"], line["listener"]): line for line in relay.access(5) if line["outcome"] != "ok"}
        assert set(lines) == {("refused_listener", "main"), ("refused_source", "other"), ("refused_instance", "other")}
        for line in lines.values():
            assert line["state"] == "PR"
            assert (line["upstream"], line["address"], line["source"]) == ("", "", "")
            assert (line["bytes_up"], line["bytes_down"], line["connect_seconds"]) == (0, 0, None)
    relay.wait_outcomes({"ok": 4, "refused_listener": 1, "refused_source": 1, "refused_instance": 1})


def test_refused_capacity(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)), descriptors=80)
    fits = relay.status()["max_connections"]
    with crowd(relay.address(), fits) as clients:
        assert len(clients.served) == fits
        relay.wait_active(fits)
        assert refused(relay.address())
        (line,) = relay.access(1)
        assert (line["outcome"], line["state"]) == ("refused_capacity", "RR")
    relay.wait_outcomes({"ok": fits, "refused_capacity": 1})


def test_worker_died(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables="[timeouts]\nidle = 1.0\n"))
    relay.expected_errors.add("worker died")
    with connect(relay.address()) as client:
        assert exchange(client, b"x" * 100) == b"x" * 100
        # Bytes of an open connection are written down now and then, and what is written down is kept.
        relay.wait_status(lambda status: status["bytes"] == {"up": 100, "down": 100})
        os.kill(relay.worker_pids()[0], signal.SIGKILL)
        assert receive(client, 1) == b""
    status = relay.wait_outcomes({"worker_died": 1})
    assert status["bytes"] == {"up": 100, "down": 100}
    assert relay.metrics().outcomes() == {"worker_died": 1}


def _takes(sock: socket.socket) -> bool:
    try:
        return bool(sock.send(b"x"))
    except (BrokenPipeError, ConnectionResetError):
        return False
