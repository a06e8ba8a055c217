"""A worker that stops reading what the supervisor tells it, until no more fits: nobody else is disturbed, and once it
goes on it is told what holds by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any

import dns.message
import dns.rdatatype
import pytest

from tests.support.clients import TIMEOUT, connect, exchange, receive
from tests.support.dns_server import NameServer
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "hub.example"
FULL = 30.0  # seconds until the channel to a worker is full
CHECKS = 0.2  # seconds
PATIENT = "[supervision]\nhang_timeout = 0\n"  # or a worker that is stopped would be replaced
CROWD = 16  # clients, of whom the other worker gets some: all but one in 65,000 times


def long_names(count: int) -> list[str]:
    """Names that fill the channel soon: its buffer has room for some 170 messages with one of them."""
    return [f"{'a' * 60}{number:03}.{'b' * 63}.{'c' * 63}.example" for number in range(count)]


RESTLESS = long_names(60)


class Restless(NameServer):
    """Gives the restless names another address each time; a relay asks every second, as often as it does at all.

    `calm` ends that.
    """

    def __init__(self) -> None:
        super().__init__({name: ["127.0.0.1"] for name in (NAME, *RESTLESS)})
        self.calm = False

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        name = str(question.name).rstrip(".")
        if not self.calm and name in RESTLESS and question.rdtype == dns.rdatatype.A:
            self.addresses[name] = ["127.0.0.2" if self.addresses[name] == ["127.0.0.1"] else "127.0.0.1"]
        return super()._answer(query)


@pytest.fixture
def names(echo: Echo) -> Iterator[Restless]:
    """Both addresses have an echo."""
    server = Restless()
    with Echo("127.0.0.2", echo.address[1]), server:
        yield server


def start_two(start: Start, names: NameServer, port: int, *listeners: str, checks: float = 0.0) -> Relay:
    """Two workers, and names that change all the time behind a listener that nobody comes to."""
    restless = listener(*(f"{name}:{port}" for name in RESTLESS), name="restless")
    tables = names.table() + "min_ttl = 1.0\n" + PATIENT
    return start(settings(*listeners, restless, workers=2, tables=tables, checks=checks))


def logged(relay: Relay, *words: str) -> list[dict[str, Any]]:
    """The log's lines that have these words. There are many others, which take long to parse."""
    lines = relay.log.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if all(word in line for word in words) and line.endswith("\n")]


@contextlib.contextmanager
def not_reading(relay: Relay, worker: int) -> Iterator[None]:
    """The worker is stopped, and the channel to it is full."""
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_until(lambda: logged(relay, "worker does not read"), FULL, what="the channel full")
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def busy(relay: Relay) -> list[int]:
    """The worker of each connection there is."""
    return [item["pid"] for item in relay.status()["workers"] for _ in range(item["active"])]


class Line:
    """The log's line of a client that is connected: it comes once it has left. Others may have had its port before."""

    def __init__(self, relay: Relay, client: socket.socket) -> None:
        self._relay = relay
        self._words = '"client": "{}:{}"'.format(*client.getsockname())
        self._before = len(logged(relay, self._words))

    def address(self) -> str:
        """Where its connection went."""
        lines = wait_until(lambda: logged(self._relay, self._words)[self._before :], what="its line")
        return str(lines[0]["address"])


def address_by(relay: Relay, worker: int, name: str = "main") -> str:
    """Where that worker takes a fresh connection to."""
    while True:
        relay.wait_active(0)
        with connect(relay.address(name)) as client:
            assert exchange(client) == b"ping"
            line = Line(relay, client)
            mine = busy(relay) == [worker]  # one from the queue of a worker that was stopped may be there as well
        if mine:
            return line.address()


def address_by_anyone(relay: Relay) -> str:
    """Where the first connection of many goes that is served."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(CROWD)]
        for client in clients:
            client.sendall(b"ping")
        ready, _, _ = select.select(clients, [], [], TIMEOUT)
        assert ready, "nobody was served"
        assert receive(ready[0], 4) == b"ping"
        line = Line(relay, ready[0])
    return line.address()


def test_it_disturbs_nobody_and_is_told_the_address_of_by_then(echo: Echo, names: Restless, start: Start) -> None:
    port = echo.address[1]
    old, new = f"127.0.0.1:{port}", f"127.0.0.2:{port}"
    relay = start_two(start, names, port, listener(f"{NAME}:{port}"))
    victim, _ = relay.worker_pids()
    assert address_by(relay, victim) == old
    with not_reading(relay, victim):
        names.addresses[NAME] = ["127.0.0.2"]
        wait_until(lambda: logged(relay, "addresses changed", NAME), what="the new answer")
        wait_until(lambda: address_by_anyone(relay) == new, what="the other worker told")
        wait_until(lambda: not relay.status()["live"], what="the supervisor aware that it is stopped")
        assert relay.metrics().value("relay_upstream_up", upstream=f"{NAME}:{port}") == 1
        assert address_by_anyone(relay) == new
    wait_until(lambda: address_by(relay, victim) == new, what="the new address, though more changes come")
    names.calm = True
    assert {address_by(relay, victim) for _ in range(3)} == {new}
    names.addresses[NAME] = ["127.0.0.1"]
    wait_until(lambda: address_by(relay, victim) == old, what="a change after that")
    (line,) = logged(relay, "worker does not read")
    assert line["pid"] == victim


def test_it_is_told_that_an_address_has_come_up_meanwhile(echo: Echo, names: Restless, start: Start) -> None:
    with contextlib.ExitStack() as stack:
        with Echo() as away:
            address = away.address
            both = listener(echo.address, address)
            relay = start_two(start, names, echo.address[1], both, checks=CHECKS)
        name = f"{address[0]}:{address[1]}"
        wait_until(lambda: logged(relay, "upstream down", name), what="down")
        victim, _ = relay.worker_pids()
        with not_reading(relay, victim):
            names.calm = True
            stack.enter_context(Echo(*address))
            wait_until(lambda: logged(relay, "upstream up", name), what="up")
        wait_until(lambda: address_by(relay, victim) == name, what="dialled again")
        relay.stop()


def test_one_that_starts_is_told_more_than_fits_at_once(echo: Echo, start: Start) -> None:
    many, port = long_names(200), echo.address[1]
    with NameServer({name: ["127.0.0.1"] for name in (*many, NAME)}, ttl=3600) as names:
        listeners = [listener(*(f"{name}:{port}" for name in many), name="many"), listener(f"{NAME}:{port}")]
        relay = start(settings(*listeners, tables=names.table() + "max_ttl = 3600.0\n"))
        relay.expected_errors.add("worker died")
        (worker,) = relay.worker_pids()
        os.kill(worker, signal.SIGKILL)
        relay.wait_status(lambda status: status["workers"][0]["ready"] and status["workers"][0]["pid"] != worker)
        (successor,) = relay.worker_pids()
        assert address_by(relay, successor) == f"127.0.0.1:{port}", "the last of the names"
