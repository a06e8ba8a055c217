"""Clients that drip their hello: what they can make the relay work for is bounded, and others are served."""

from __future__ import annotations

import pytest

from relay.core.client_hello import LIMIT
from tests.clients import connect, exchange, was_reset
from tests.core.hellos import PADDING, by_openssl, extension, hello, records, server_name
from tests.harness import Start
from tests.relay_toml import listener, settings
from tests.tls import NAME
from tests.upstreams import Echo


@pytest.mark.parametrize("size", [LIMIT + 100, 60_000], ids=["a little", "much"])
def test_a_hello_that_is_too_long(echo: Echo, start: Start, size: int) -> None:
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]')))
    data = records(hello(server_name(NAME.encode()) + extension(PADDING, bytes(size))))
    with connect(relay.address()) as client:
        client.sendall(data[:LIMIT])
        assert was_reset(client)
    relay.wait_outcomes({"refused_tls": 1})


def test_many_that_drip_do_not_disturb_others(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]'), listener(echo.address, name="open")))
    data = by_openssl(NAME)
    clients = [connect(relay.address()) for _ in range(100)]
    for at in range(len(data)):
        for client in clients:
            client.sendall(data[at : at + 1])
        if not at % 50:
            with connect(relay.address("open")) as other:
                assert exchange(other) == b"ping"
    for client in clients:
        assert client.recv(len(data)) != b""
        client.close()
    relay.wait_active(0)
    assert echo.served >= 100
