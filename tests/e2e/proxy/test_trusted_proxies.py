"""PROXY headers count from trusted senders only."""

from __future__ import annotations

import socket

import pytest

from relay.core.proxy_header import build
from tests.support.clients import connect, exchange, receive, refused, was_reset
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

PROXY, STRANGER = "127.0.0.7", "127.0.0.1"
CLIENT = ("203.0.113.7", 4711)
HEADER = build(2, CLIENT, ("203.0.113.1", 8883))


def begin(echo: Echo, start: Start, mode: str, tables: str = "", more: str = "") -> Relay:
    own = f'proxy_protocol = "{mode}"\ntrusted_proxies = ["127.0.0.4/30", "fd00::/8"]\n{more}'
    return start(settings(listener(echo.address, more=own), workers=2, tables=tables))


def sent(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data + b"ping")
    return receive(sock, 4)


@pytest.mark.parametrize("mode", ["accept", "require"])
def test_a_trusted_proxys_header_names_the_client(echo: Echo, start: Start, mode: str) -> None:
    relay = begin(echo, start, mode)
    with connect(relay.address(), PROXY) as client:
        assert sent(client, HEADER) == b"ping"
    (line,) = relay.access(1)
    assert line["client"] == "{}:{}".format(*CLIENT)


def test_with_require_another_sender_is_refused_at_once(echo: Echo, start: Start) -> None:
    """Before it has sent a byte, and so before timeouts.client_hello."""
    relay = begin(echo, start, "require", tables="[timeouts]\nclient_hello = 600.0\n")
    assert refused(relay.address(), STRANGER)
    relay.wait_outcomes({"refused_proxy": 1})
    assert echo.served == 0


def test_with_accept_another_sender_is_a_plain_client(echo: Echo, start: Start) -> None:
    relay = begin(echo, start, "accept")
    with connect(relay.address(), STRANGER) as client:
        assert exchange(client) == b"ping"
    (line,) = relay.access(1)
    assert line["client"].startswith(f"{STRANGER}:")


@pytest.mark.parametrize("header", [HEADER, build(1, CLIENT, ("203.0.113.1", 8883)), build(2, None, None)])
def test_with_accept_its_header_is_refused(echo: Echo, start: Start, header: bytes) -> None:
    relay = begin(echo, start, "accept")
    with connect(relay.address(), STRANGER) as client:
        client.sendall(header + b"ping")
        assert was_reset(client)
    relay.wait_outcomes({"refused_proxy": 1})
    assert echo.served == 0


def test_nobody_gains_access_by_a_header_of_its_own(echo: Echo, start: Start) -> None:
    relay = begin(echo, start, "accept", tables='[access]\nallow = ["203.0.113.0/24"]\n')
    with connect(relay.address(), STRANGER) as client:
        client.sendall(HEADER + b"ping")
        assert was_reset(client)
    with connect(relay.address(), STRANGER) as client:
        client.sendall(b"ping")
        assert was_reset(client)
    with connect(relay.address(), PROXY) as client:
        assert sent(client, HEADER) == b"ping"
    relay.wait_outcomes({"refused_proxy": 1, "refused_access": 1, "ok": 1})


def test_a_reload_changes_whom_it_trusts(echo: Echo, start: Start) -> None:
    relay = begin(echo, start, "require")
    assert refused(relay.address(), STRANGER)
    relay.config.write_text(relay.config.read_text().replace("127.0.0.4/30", STRANGER))
    assert relay.post("/reload") == (200, "ok\n")
    with connect(relay.address(), STRANGER) as client:
        assert sent(client, HEADER) == b"ping"
    assert refused(relay.address(), PROXY)
