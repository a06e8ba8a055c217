"""Every byte arrives, once and in order, in both directions: large, small, one at a time, and after FIN."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading

from tests.support.clients import connect, drain, exchange
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, hash_sink, sender

BIG = random.Random(7).randbytes(64 << 20)
DIGEST = hashlib.sha256(BIG).hexdigest()


def test_upload(start: Start) -> None:
    with Upstream(hash_sink) as sink:
        relay = start(settings(listener(sink.address)))
        with connect(relay.address()) as client:
            client.sendall(BIG)
            client.shutdown(socket.SHUT_WR)
            assert drain(client).decode() == DIGEST
        status = relay.wait_outcomes({"ok": 1})
    assert status["bytes"] == {"up": len(BIG), "down": 64}


def test_download(start: Start) -> None:
    with Upstream(sender(BIG)) as source:
        relay = start(settings(listener(source.address)))
        with connect(relay.address()) as client:
            assert hashlib.sha256(drain(client)).hexdigest() == DIGEST
        status = relay.wait_outcomes({"ok": 1})
    assert status["bytes"] == {"up": 0, "down": len(BIG)}


def test_both_ways_at_once(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    with connect(relay.address()) as client:

        def send() -> None:
            client.sendall(BIG)
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        got = drain(client)
        thread.join()
    assert hashlib.sha256(got).hexdigest() == DIGEST
    status = relay.wait_outcomes({"ok": 1})
    assert status["bytes"] == {"up": len(BIG), "down": len(BIG)}


def test_one_byte_at_a_time(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    data = os.urandom(500)
    with connect(relay.address()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert b"".join(exchange(client, data[i : i + 1]) for i in range(len(data))) == data
    relay.wait_outcomes({"ok": 1})


def test_connections_do_not_get_each_others_bytes(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    clients = [connect(relay.address()) for _ in range(100)]
    try:
        for turn in range(5):
            for number, client in enumerate(clients):
                client.sendall(f"{number}/{turn};".encode() * 50)
            for number, client in enumerate(clients):
                wanted = f"{number}/{turn};".encode() * 50
                got = b""
                while len(got) < len(wanted):
                    got += client.recv(len(wanted) - len(got))
                assert got == wanted
    finally:
        for client in clients:
            client.close()
    relay.wait_outcomes({"ok": 100})


def test_bytes_of_a_connection_that_goes_on_are_counted_meanwhile(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables="[timeouts]\nidle = 1.0"))
    with connect(relay.address()) as client:
        assert exchange(client, b"x" * 1000) == b"x" * 1000
        wait_until(
            lambda: relay.metrics().value("relay_bytes_total", listener="main", direction="up") == 1000,
            what="1000 bytes up in a connection that is still open",
        )
