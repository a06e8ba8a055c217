"""A crowd at the health port or at the admin port, which asks nothing: whoever asks something is answered meanwhile."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.e2e.health.crowd import BEGINNING, LOOPBACK, Crowd
from tests.support.clients import connect, drain, echoes
from tests.support.harness import Relay, Start
from tests.support.observe import descriptors
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

HEALTH_MOST = 256
SPARE = 32  # descriptors that a relay opens now and then: name server, checks, the connections of these tests
ASK = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def engine() -> str:
    """Both ports are the supervisor's: the workers' engine makes no difference."""
    return "stream"


@pytest.fixture
def running(echo: Echo, start: Start) -> Relay:
    return start(settings(listener(echo.address)))


def probe(relay: Relay, port: str = "health", source: str = "") -> None:
    with connect(relay.address(port), source) as client:
        client.sendall(ASK)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("port", ["health", "admin"])
@pytest.mark.parametrize("drip", [False, True], ids=["silent", "dripping"])
@pytest.mark.parametrize("sources", [["127.0.0.1"], LOOPBACK], ids=["one-source", "many-sources"])
def test_every_probe_is_answered_whatever_the_crowd(running: Relay, port: str, sources: list[str], drip: bool) -> None:
    before = len(descriptors(running.process.pid))
    with Crowd(running.address(port), sources, drip=drip) as crowd:
        size = 0
        for target in (64, 1000, 5000):
            while size < target:
                step = min(250, target - size)
                crowd.grow(step)
                size += step
                probe(running, port)  # from the crowd's own source, if it has one
                probe(running, port, "127.0.0.99")
            for _ in range(3):
                crowd.stir()
                probe(running, port)
                probe(running, port, "127.0.0.99")
        assert len(descriptors(running.process.pid)) <= before + HEALTH_MOST + SPARE
        # Traffic and the other port are as ever.
        assert echoes(running.address())
        probe(running, "admin" if port == "health" else "health")


@pytest.mark.parametrize("port", ["health", "admin"])
def test_of_a_burst_that_comes_at_once_whoever_asks_is_answered(running: Relay, port: str) -> None:
    with ExitStack() as stack, Crowd(running.address(port), ["127.0.0.1"]) as crowd:
        running.signal(signal.SIGSTOP)
        probes = []
        for _ in range(5):
            crowd.grow(400)
            probes.append(stack.enter_context(connect(running.address(port))))
            probes[-1].sendall(ASK)
        crowd.grow(400)
        running.signal(signal.SIGCONT)
        for client in probes:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_many_who_ask_at_once_are_all_answered(running: Relay) -> None:
    with ExitStack() as stack:
        running.signal(signal.SIGSTOP)
        clients = [stack.enter_context(connect(running.address("health"))) for _ in range(3 * HEALTH_MOST)]
        for client in clients:
            client.sendall(ASK)
        running.signal(signal.SIGCONT)
        for client in clients:
            assert drain(client).startswith(b"HTTP/1.1 200 ")


def test_the_silence_of_one_source_leaves_the_others_theirs(running: Relay) -> None:
    with connect(running.address("health"), "127.0.0.99") as patient, ExitStack() as stack:
        running.signal(signal.SIGSTOP)  # so that all of them come within the time that one may take
        patient.sendall(ASK[:10])
        for _ in range(HEALTH_MOST + 50):
            stack.enter_context(connect(running.address("health"), "127.0.0.1"))
        running.signal(signal.SIGCONT)
        probe(running)  # they have all been accepted
        patient.sendall(ASK[10:])
        assert patient.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("beginning", [b"", b"G", BEGINNING, b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"])
def test_whoever_does_not_ask_to_the_end_is_not_waited_for(running: Relay, beginning: bytes) -> None:
    with connect(running.address("health")) as client:
        client.sendall(beginning)
        assert drain(client) == b""


def test_an_answer_of_the_health_port_ends_its_connection(running: Relay) -> None:
    with connect(running.address("health")) as client:
        client.sendall(ASK)
        answer = drain(client)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"ok\n")


def test_the_admin_port_keeps_a_scraper_s_connection(running: Relay) -> None:
    with connect(running.address("admin")) as client, Crowd(running.address("admin"), ["127.0.0.1"]) as crowd:
        for _ in range(5):
            client.sendall(ASK)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            crowd.grow(200)  # who has asked something stays before those who have not
            probe(running, "admin")


def test_both_ports_take_ipv6_and_its_crowds(echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address)).replace('"127.0.0.1:0"', '"[::1]:0"', 2)
    running = start(toml)
    for port in ("admin", "health"):
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(connect(running.address(port)))
            probe(running, port)
