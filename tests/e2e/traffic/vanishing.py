"""Runs in a network namespace where packets get lost, for test_vanishing.py.

    python -m tests.e2e.traffic.vanishing DIRECTORY ENGINE client|upstream|closed|silent|probes

Exit status 0 if the relay gives up who is gone, and nobody else.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.clients import connect, drain, exchange, receive
from tests.support.harness import Json, Relay
from tests.support.namespace import nft
from tests.support.observe import tcp_ports, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, sender

# What the relay sends to a peer is lost, and so is what the peer's kernel answers.
RULES = """\
table ip lossy {{
    counter lost {{ }}
    chain out {{
        type filter hook output priority 0;
        tcp sport {0} tcp dport {1} counter name lost drop;
        tcp sport {1} tcp dport {0} drop;
    }}
}}
"""
KEEPALIVE = "keepalive_idle = 1\nkeepalive_interval = 1\nkeepalive_count = {}\n"


def lose(ours: int, theirs: int) -> None:
    """Nothing passes between these ports any more."""
    nft("-f", "-", text=RULES.format(ours, theirs))


def lost() -> int:
    """Packets of the relay's that were lost."""
    listed: dict[str, Any] = json.loads(nft("-j", "list", "counters", "table", "ip", "lossy"))
    return int(next(item["counter"]["packets"] for item in listed["nftables"] if "counter" in item))


def start(directory: Path, engine: str, upstream: tuple[str, int], tcp: str) -> Relay:
    return Relay(directory, settings(listener(upstream), tables=f"[tcp]\n{tcp}"), environ={"RELAY_ENGINE": engine})


def gone(line: Json, outcome: str, state: str) -> None:
    assert (line["outcome"], line["state"], line["error"]) == (outcome, state, "ETIMEDOUT"), line


def client(directory: Path, engine: str) -> None:
    news = threading.Event()

    def serve(sock: Any) -> None:
        sock.sendall(receive(sock, 4))
        news.wait()
        sock.sendall(b"news")
        drain(sock)

    with Upstream(serve) as upstream, start(directory, engine, upstream.address, "user_timeout = 1.0\n") as relay:
        with connect(relay.address()) as vanished, connect(relay.address()) as other:
            assert exchange(vanished) == exchange(other) == b"ping"
            lose(relay.address()[1], vanished.getsockname()[1])
            news.set()
            (line,) = relay.access(1)
            gone(line, "client_lost", "cD")
            assert line["seconds"] >= 1.0
            assert receive(other, 4) == b"news"
        relay.wait_outcomes({"client_lost": 1, "ok": 1})


def upstream(directory: Path, engine: str) -> None:
    with Echo() as echo, start(directory, engine, echo.address, "user_timeout = 1.0\n") as relay:
        with connect(relay.address()) as first:
            assert exchange(first) == b"ping"
            port = port_towards(echo.address[1])
            with connect(relay.address()) as other:
                assert exchange(other) == b"ping"
                lose(port, echo.address[1])
                first.sendall(b"anybody there?")
                (line,) = relay.access(1)
                gone(line, "upstream_lost", "sD")
                assert exchange(other) == b"ping"
        relay.wait_outcomes({"upstream_lost": 1, "ok": 1})


def port_towards(port: int) -> int:
    """The local port of the one established connection to that port."""
    (local,) = [local for local, remote in tcp_ports("01") if remote == port]
    return local


def closed(directory: Path, engine: str) -> None:
    """The client had not read for a while: what it owes an answer to is whether its window is still closed."""
    with (
        Upstream(sender(b"x" * 20_000_000)) as upstream,
        start(directory, engine, upstream.address, "user_timeout = 1.0\n") as relay,
        connect(relay.address()) as vanished,
    ):
        relay.wait_status(lambda status: status["workers"][0]["held_bytes"] > 0, what="nothing more fits")
        lose(relay.address()[1], vanished.getsockname()[1])
        (line,) = relay.access(1)
        gone(line, "client_lost", "cD")


def silent(directory: Path, engine: str) -> None:
    """Nobody owes anything: keepalive finds out."""
    with (
        Echo() as echo,
        start(directory, engine, echo.address, KEEPALIVE.format(2)) as relay,
        connect(relay.address()) as vanished,
    ):
        assert exchange(vanished) == b"ping"
        lose(relay.address()[1], vanished.getsockname()[1])
        (line,) = relay.access(1)
        gone(line, "client_lost", "cD")


def probes(directory: Path, engine: str) -> None:
    """Some probes are lost, fewer than the count, over a time longer than the user timeout."""
    tables = KEEPALIVE.format(20) + "user_timeout = 0.5\n"
    with Echo() as echo, start(directory, engine, echo.address, tables) as relay:
        with connect(relay.address()) as client:
            assert exchange(client) == b"ping"
            lose(relay.address()[1], client.getsockname()[1])
            wait_until(lambda: lost() >= 4, what="four probes lost")
            nft("delete", "table", "ip", "lossy")
            assert exchange(client) == b"ping"
        relay.wait_outcomes({"ok": 1})


def main() -> None:
    scenarios = {each.__name__: each for each in (client, upstream, closed, silent, probes)}
    scenarios[sys.argv[3]](Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    main()
