"""What goes to the listener's own upstream, what is refused, and what happens to those who say nothing."""

from __future__ import annotations

import socket
import time

import pytest

from tests.core.hellos import by_openssl
from tests.e2e.routes.places import route
from tests.support.clients import connect, drain, receive, was_reset
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream

NAME = "r.example"
TIMEOUT = 1.0  # seconds for a hello, where a test waits for it to pass
HELLO = f"[timeouts]\nclient_hello = {TIMEOUT}\n"
NOT_TLS = b"GET / HTTP/1.1\r\n\r\n"


def banner(sock: socket.socket) -> None:
    """A server that speaks first."""
    sock.sendall(b"220 welcome")
    drain(sock)


def begin(start: Start, own: tuple[str, int] | None, routed: tuple[str, int], sni: str = "") -> Relay:
    text = listener(*([own] if own else []), more=sni + route("r", NAME, to="{}:{}".format(*routed)))
    return start(settings(text, tables=HELLO))


def asks(relay: Relay, name: str) -> bool:
    """Whether a client that asks for the name has its hello back, from an echo."""
    sent = by_openssl(name)
    with connect(relay.address()) as client:
        client.sendall(sent)
        return receive(client, len(sent)) == sent


@pytest.mark.parametrize(
    "sent",
    [by_openssl("other.example"), by_openssl(None), NOT_TLS, by_openssl(NAME)[:2] + b"!" * 9],
    ids=["another name", "no name", "HTTP", "nonsense"],
)
def test_all_that_no_route_matches_goes_to_the_listeners_own_upstream(echo: Echo, start: Start, sent: bytes) -> None:
    with Echo() as own:
        relay = begin(start, own.address, echo.address)
        with connect(relay.address()) as client:
            client.sendall(sent)
            assert receive(client, len(sent)) == sent
        relay.wait_active(0)
        assert (own.served, echo.served) == (1, 0)
        assert asks(relay, NAME)
        assert (own.served, echo.served) == (1, 1)


def test_who_is_silent_is_connected_after_the_time_for_a_hello(echo: Echo, start: Start) -> None:
    """So a server that speaks first is heard, late."""
    with Upstream(banner) as own:
        relay = begin(start, own.address, echo.address)
        began = time.monotonic()
        with connect(relay.address()) as client:
            assert receive(client, 11) == b"220 welcome"
            assert time.monotonic() - began >= TIMEOUT
            client.sendall(b"quit")
            client.shutdown(socket.SHUT_WR)
            assert drain(client) == b""
        relay.wait_outcomes({"ok": 1})


@pytest.mark.parametrize("sent", [b"", by_openssl(NAME)[:60]], ids=["nothing", "a part of a hello"])
def test_a_fin_before_the_hello_is_passed_on_with_what_came(echo: Echo, start: Start, sent: bytes) -> None:
    with Echo() as own:
        relay = begin(start, own.address, echo.address)
        with connect(relay.address()) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert drain(client) == sent
        status = relay.wait_outcomes({"ok": 1})
        assert status["bytes"] == {"up": len(sent), "down": len(sent)}
        assert own.served == 1


@pytest.mark.parametrize("own", [True, False], ids=["sni", "no own upstream"])
def test_what_is_refused(echo: Echo, start: Start, own: bool) -> None:
    with Echo() as other:
        sni = 'sni = ["further.example"]\n' if own else ""
        relay = begin(start, other.address if own else None, echo.address, sni)
        for sent in (by_openssl("other.example"), by_openssl(None), NOT_TLS, b""):
            with connect(relay.address()) as client:
                client.sendall(sent)
                assert was_reset(client)
        relay.wait_outcomes({"refused_sni": 2, "refused_tls": 1, "client_hello_timeout": 1})
        assert (other.served, echo.served) == (0, 0), "none was dialled for"
        for name in (NAME, "further.example") if own else (NAME,):
            assert asks(relay, name)
        assert (other.served, echo.served) == (int(own), 1)


def test_no_upstream_is_taken_from_a_clients_name(echo: Echo, start: Start) -> None:
    """Not even where the name is an address, or that of another upstream of this relay."""
    with Echo() as own:
        relay = begin(start, own.address, echo.address)
        for name in ("localhost", "127.0.0.1", "1.2.3.4.example"):
            assert asks(relay, name)
        assert (own.served, echo.served) == (3, 0)
