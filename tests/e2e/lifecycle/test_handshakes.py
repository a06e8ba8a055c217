"""Who has begun to connect when the relay stops listening comes in; who begins later is never told that it is in."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.support.clients import connect, exchange
from tests.support.harness import Start
from tests.support.namespace import inside, needs_namespace, needs_nft
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

CLIENTS = 8


@needs_namespace
@needs_nft
@pytest.mark.parametrize("how", ["drain", "SIGTERM", "reload", "undrain"])
def test_a_handshake_under_way_becomes_a_connection(tmp_path: Path, engine: str, how: str) -> None:
    inside("tests.e2e.lifecycle.handshake", tmp_path, engine, how)


def test_nobody_who_is_connected_is_reset_by_a_drain(echo: Echo, start: Start) -> None:
    """Clients that come one after the other, as fast as they can, until nobody is let in."""
    relay = start(settings(listener(echo.address), workers=2, tables="[drain]\nwindow = 1.0\n"))
    address = relay.address()
    served, cut = [0] * CLIENTS, list[str]()

    def come(number: int) -> None:
        while True:
            try:
                client = connect(address)
            except (ConnectionError, TimeoutError):
                return
            with client:
                try:
                    served[number] += exchange(client) == b"ping"
                except ConnectionResetError as error:
                    cut.append(str(error))
                except (OSError, AssertionError):
                    pass  # it was among those that the drain closed before the answer came

    threads = [threading.Thread(target=come, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    relay.wait_status(lambda status: status["connections"]["accepted"] >= 200, what="clients")
    relay.signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert relay.wait() == 0
    assert not cut
    assert sum(served) >= 150
