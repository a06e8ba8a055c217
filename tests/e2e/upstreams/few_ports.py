"""Runs in a network namespace with few local ports, for test_sources.py.

    python -m tests.e2e.upstreams.few_ports SCENARIO DIRECTORY ENGINE

Clients have ports outside of the kernel's range, so that only the relay's side runs out. Prints what it found as a line
of JSON.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections import Counter
from itertools import count
from pathlib import Path

from tests.support.clients import TIMEOUT, exchange, was_reset
from tests.support.harness import Relay
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

TARGET = "192.0.2.1"
SOURCES = '[dial]\nsource_addresses = ["192.0.2.1", "192.0.2.2"]\n'
TRIES = 200
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
# A port that bind(2) has taken is none that the kernel chooses for a connect: these are not among those it has here.
FIRST_PORT = 20000  # of clients
OWN_PORTS = count(21000)  # of servers
MORE = 10


class Seeing(Echo):
    """An echo that notes from where connections come."""

    def __init__(self) -> None:
        super().__init__(TARGET, next(OWN_PORTS))
        self.sources: Counter[str] = Counter()

    def _accept(self) -> None:
        before = set(self._pending)
        super()._accept()
        for sock in set(self._pending) - before:
            with contextlib.suppress(OSError):
                self.sources[sock.getpeername()[0]] += 1

    def forget(self) -> None:
        """Count from here on."""
        wait_until(lambda: sum(self.sources.values()) == self.served, what="all counted")
        self.sources.clear()


def ports(relay: Relay, name: str) -> dict[str, int]:
    found = relay.metrics().by_label(f"relay_source_ports_{name}", "source")
    return {source: int(value) for source, value in found.items()}


def main() -> None:
    scenario, directory, engine = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(Seeing())
        toml = settings(listener(echo.address), workers=2, tables="" if scenario == "none" else SOURCES)
        while ":0" in toml:
            toml = toml.replace(":0", f":{next(OWN_PORTS)}", 1)
        relay = stack.enter_context(Relay(directory, toml, environ={"RELAY_ENGINE": engine}))
        if scenario == "taken":
            taken = 0
            with contextlib.suppress(OSError):
                while True:  # every port of the first source towards the echo, by somebody else
                    sock = stack.enter_context(socket.socket())
                    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                    sock.bind(("192.0.2.1", 0))
                    sock.connect(echo.address)
                    taken += 1
            wait_until(lambda: echo.served == taken, what="the ports taken")
            echo.forget()
        clients: list[socket.socket] = []
        number = 0
        while number < TRIES:
            number += 1
            try:
                client = come(relay, number)
                assert exchange(client) == b"ping"
            except (ConnectionError, AssertionError):
                break
            clients.append(client)
        served = len(clients)
        for more in range(MORE - 1):
            assert reset_at_once(relay, number + more + 1)
        found = {
            "served": served,
            "in_use": ports(relay, "in_use"),
            "limit": ports(relay, "limit"),
            "sources": dict(echo.sources),
        }
        for client in clients:
            client.close()
        relay.wait_active(0)
        if scenario == "two":
            wait_until(lambda: served_again(relay), what="served again")
        relay.wait_active(0)
        found["after"] = ports(relay, "in_use")
        outcomes = relay.status()["connections"]["outcomes"]
        found["outcomes"] = {label: count for label, count in outcomes.items() if count}
    sys.stdout.write(json.dumps(found) + "\n")


def come(relay: Relay, number: int) -> socket.socket:
    """A client with a port of its own."""
    return socket.create_connection(relay.address(), TIMEOUT, source_address=("127.0.0.1", FIRST_PORT + number))


def reset_at_once(relay: Relay, number: int) -> bool:
    try:
        with come(relay, number) as client:
            return was_reset(client)
    except ConnectionResetError:
        return True


def served_again(relay: Relay) -> bool:
    try:
        with come(relay, TRIES + MORE + 1) as client:
            return exchange(client) == b"ping"
    except ConnectionError:
        return False


if __name__ == "__main__":
    main()
