"""Clients that drip their hello: what they can make the relay work for is bounded, and others are served."""

from __future__ import annotations

import contextlib
import socket

import pytest

from relay.core.client_hello import LIMIT
from relay.engines.preread import SHARE
from tests.core.hellos import PADDING, by_openssl, extension, hello, records, server_name
from tests.support.clients import connect, exchange, receive, was_reset
from tests.support.harness import Json, Start
from tests.support.relay_toml import listener, settings
from tests.support.tls import NAME
from tests.support.upstreams import Echo


@pytest.mark.parametrize("size", [LIMIT + 100, 60_000], ids=["a little", "much"])
def test_a_hello_that_is_too_long(echo: Echo, start: Start, size: int) -> None:
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]')))
    data = records(hello(server_name(NAME.encode()) + extension(PADDING, bytes(size))))
    with connect(relay.address()) as client:
        client.sendall(data[:LIMIT])
        assert was_reset(client)
    relay.wait_outcomes({"refused_tls": 1})


def test_hellos_that_never_come_whole_are_counted_and_take_no_more_than_their_share(echo: Echo, start: Start) -> None:
    """The oldest go; whoever says all of it is served, in two pieces as well."""
    tables = "[limits]\nheld_bytes = 4000000\n[timeouts]\nclient_hello = 0.0"
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]'), tables=tables))
    part = records(hello(server_name(NAME.encode()) + extension(PADDING, bytes(LIMIT - 500))))[: LIMIT - 600]
    room = 4_000_000 // SHARE // len(part)
    whole = by_openssl(NAME)
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(2 * room):
            slow.append(stack.enter_context(connect(relay.address())))
            slow[-1].sendall(part)
            if number % 20 == 0:
                with connect(relay.address()) as client:
                    client.sendall(whole[:100])
                    assert exchange_rest(client, whole)
        assert all(was_reset(client) for client in slow[:room])
        relay.wait_status(lambda status: held(status) == room * len(part), what="the rest is held")
        relay.wait_active(room)
    relay.wait_active(0)
    relay.wait_status(lambda status: held(status) == 0, what="nothing is held")


def held(status: Json) -> int:
    return sum(worker["held_bytes"] for worker in status["workers"])


def exchange_rest(client: socket.socket, whole: bytes) -> bool:
    """Say the rest of a hello; whether an echo sends all of it back."""
    client.sendall(whole[100:])
    return receive(client, len(whole)) == whole


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_all_bytes_of_an_unfinished_hello_are_accounted(echo: Echo, start: Start, leaves: bool) -> None:
    """Also those that came after the last look at it."""
    tables = "" if leaves else "[timeouts]\nclient_hello = 1.0"
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]'), tables=tables))
    part = by_openssl(NAME)[:-1]
    with connect(relay.address()) as client:
        client.sendall(part[:9])
        relay.wait_status(lambda status: held(status) == 9, what="the headers are there")
        client.sendall(part[9:])
        if not leaves:
            assert was_reset(client)
    relay.wait_outcomes({"client_hello_abort" if leaves else "client_hello_timeout": 1})
    (line,) = relay.access(1)
    assert line["bytes_up"] == len(part)
    assert relay.status()["bytes"]["up"] == len(part)


def test_thousands_of_extensions_are_refused(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address, more=f'sni = ["{NAME}"]')))
    many = b"".join(extension(1000 + number, b"") for number in range(3500))
    with connect(relay.address()) as client:
        client.sendall(records(hello(server_name(NAME.encode()) + many)))
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
