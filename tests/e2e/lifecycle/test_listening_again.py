"""An address that is listened on again while the sockets of before are still being left: nobody's SYN is dropped."""

from __future__ import annotations

import contextlib
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.lifecycle.test_reload import change
from tests.support.clients import connect, drain, exchange
from tests.support.harness import Relay, Start
from tests.support.observe import sent_again, wait_until
from tests.support.programs import free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

CROWD = 64


def listening(relay: Relay, port: int) -> dict[int, set[tuple[str, str]]]:
    """By worker, descriptor and identity of each socket that listens there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    found: dict[int, set[tuple[str, str]]] = {}
    for pid in relay.worker_pids():
        found[pid] = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if (target := str(link.readlink())) in sockets:
                    found[pid].add((link.name, target))
    return found


@pytest.mark.parametrize("way", ["undrain", "undrain later", "reload"])
def test_whoever_connects_is_answered_at_once(echo: Echo, start: Start, way: str) -> None:
    window = "[drain]\nwindow = 60.0\n"
    address = f"127.0.0.1:{free_port()}"
    one = settings(listener(echo.address), workers=2, tables=window)
    both = settings(
        listener(echo.address), listener(echo.address, name="more", bind=[address]), workers=2, tables=window
    )
    relay = start(both)
    port = relay.address("more")[1]
    before = listening(relay, port)
    with ExitStack() as stack:
        old = [stack.enter_context(connect(relay.address("more"))) for _ in range(8)]
        assert all(exchange(client) == b"ping" for client in old)
        if way == "reload":
            assert change(relay, one)[0] == 200
            assert change(relay, both)[0] == 200
        else:
            relay.post("/drain")
            relay.wait_phase("closing")
            if way == "undrain later":
                wait_until(lambda: not any(listening(relay, port).values()), what="no worker listens")
            assert relay.post("/undrain") == (200, "ok\n")
        wait_until(
            lambda: all(sockets - before[pid] for pid, sockets in listening(relay, port).items()),
            what="every worker listens again",
        )
        clients = [stack.enter_context(connect(relay.address("more"))) for _ in range(CROWD)]
        assert [sent_again(client) for client in clients] == [0] * CROWD
        assert all(exchange(client) == b"ping" for client in clients)
        living = [client for client in old if exchange_or_end(client)]
        assert len(living) >= len(old) - 2, "established connections stay, but for those whose turn had come"
        assert all(len(sockets) == 1 for sockets in listening(relay, port).values()), "nothing is left over"


def exchange_or_end(client: socket.socket) -> bool:
    """Whether it is still served; else it has ended in good order."""
    client.sendall(b"ping")
    data = client.recv(4)
    if not data:
        assert drain(client) == b""
    return data == b"ping"


def test_again_and_again(echo: Echo, start: Start) -> None:
    """Whatever is left over would be one more with each round."""
    relay = start(settings(listener(echo.address), workers=2, tables="[drain]\nwindow = 60.0\n"))
    port = relay.address()[1]
    with connect(relay.address()) as keeps_it_closing:
        assert exchange(keeps_it_closing) == b"ping"
        for _ in range(10):
            relay.post("/drain")
            relay.wait_phase("closing")
            assert relay.post("/undrain") == (200, "ok\n")
            with connect(relay.address()) as client:
                assert exchange(client) == b"ping"
        wait_until(
            lambda: all(len(sockets) == 1 for sockets in listening(relay, port).values()), what="one socket for each"
        )
