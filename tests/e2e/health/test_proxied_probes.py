"""Probes of a load balancer that sends a PROXY header with every connection: the health port takes one, or none."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack

import pytest

from tests.core.proxy_headers import BLOCK, BLOCK6, LINE, LINE6, LINK_ID, LOCAL, PROXY, TCP4, TCP6, UNSPEC, v2
from tests.support.clients import connect, drain
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

ASK = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEADERS = {
    "none": b"",
    "v1": LINE,
    "v1-ipv6": LINE6,
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v2-local": v2(LOCAL, UNSPEC, b""),  # a balancer's own probe
    "v2-local-azure": v2(LOCAL, UNSPEC, LINK_ID),
    "v2-azure": v2(PROXY, TCP4, BLOCK + LINK_ID),
    "v2-ipv6": v2(PROXY, TCP6, BLOCK6),
}
NO_HEADERS = {
    "v1-without-addresses": b"PROXY TCP4\r\n",
    "v1-too-long": b"PROXY TCP4 " + b"1" * 200,
    "v2-version": v2(0x30, UNSPEC, b""),
    "v2-command": v2(0x22, UNSPEC, b""),
    "v2-too-long": v2(PROXY, TCP4, BLOCK, length=0xFFFF),
    "v2-without-addresses": v2(PROXY, TCP4, b""),
}


@pytest.fixture
def engine() -> str:
    """Both ports are the supervisor's: the workers' engine makes no difference."""
    return "stream"


@pytest.fixture(params=["off", "require"])
def running(request: pytest.FixtureRequest, echo: Echo, start: Start) -> Relay:
    """Whether the listeners speak the protocol makes no difference."""
    return start(settings(listener(echo.address, more=f'proxy_protocol = "{request.param}"')))


def test_a_probe_is_answered_with_and_without_a_header(running: Relay) -> None:
    for name, header in HEADERS.items():
        with connect(running.address("health")) as client:
            client.sendall(header + ASK)
            assert drain(client).startswith(b"HTTP/1.1 200 "), name


def test_a_header_may_come_in_pieces(running: Relay) -> None:
    for name, header in HEADERS.items():
        for at in range(1, len(header) + 2):
            with connect(running.address("health")) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each piece is a segment
                client.sendall((header + ASK)[:at])
                client.sendall((header + ASK)[at:])
                assert drain(client).startswith(b"HTTP/1.1 200 "), (name, at)


def test_a_header_and_a_request_may_come_byte_by_byte(running: Relay) -> None:
    for name, header in HEADERS.items():
        with connect(running.address("health")) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in header + ASK:
                client.sendall(bytes([byte]))
            assert drain(client).startswith(b"HTTP/1.1 200 "), name


def test_what_is_no_header_is_closed_without_an_answer(running: Relay) -> None:
    for name, header in NO_HEADERS.items():
        with connect(running.address("health")) as client:
            try:
                client.sendall(header + ASK)
                assert drain(client) == b"", name
            except (ConnectionResetError, BrokenPipeError):
                pass


def test_one_header_is_enough(running: Relay) -> None:
    with connect(running.address("health")) as client:
        client.sendall(HEADERS["v2-local"] + LINE + ASK)
        assert drain(client).startswith(b"HTTP/1.0 400 ")


def test_the_admin_port_takes_none(running: Relay) -> None:
    for name, header in HEADERS.items():
        with connect(running.address("admin")) as client:
            client.sendall(header + ASK)
            answer = drain(client)
            assert answer.startswith(b"HTTP/1.1 200 ") if not header else b" 400 " in answer[:20], name


def test_the_address_in_a_header_makes_no_source(running: Relay) -> None:
    # Of one source 64 may be silent, whatever addresses they claim: more leave room for those of others.
    with connect(running.address("health"), "127.0.0.99") as patient, ExitStack() as stack:
        running.signal(signal.SIGSTOP)  # so that all of them come within the time that one may take
        patient.sendall(HEADERS["v2-local"] + ASK[:10])
        for number in range(300):
            client = stack.enter_context(connect(running.address("health"), "127.0.0.1"))
            client.sendall(f"PROXY TCP4 10.0.{number // 250}.{number % 250} 10.9.9.9 1 2\r\n".encode())
        running.signal(signal.SIGCONT)
        with connect(running.address("health")) as client:
            client.sendall(ASK)
            assert drain(client).startswith(b"HTTP/1.1 200 ")
        patient.sendall(ASK[10:])
        assert drain(patient).startswith(b"HTTP/1.1 200 ")
