"""After any mixture of clients, deaths and signals the accounts add up, and agree with what the clients saw."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections import Counter

from tests.support.clients import connect, drain, exchange, reset
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, refusing, resetter, sender

KINDS = ("talk", "half", "reset", "at_once", "refused", "broken", "download", "stay")
EACH = 60
THREADS = 6


class Storm:
    """Clients of all kinds, from several threads; counts the connections that were established, by listener."""

    def __init__(self, addresses: dict[str, tuple[str, int]]) -> None:
        self._addresses = addresses
        self._lock = threading.Lock()
        self.connected: Counter[str] = Counter()
        self.staying: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        kinds = list(KINDS) * (EACH // THREADS)
        random.Random(seed).shuffle(kinds)
        for kind in kinds:
            name = {"refused": "refused", "broken": "broken", "download": "download"}.get(kind, "main")
            with contextlib.suppress(ConnectionError):
                self._client(name, kind)

    def _client(self, name: str, kind: str) -> None:
        try:
            client = connect(self._addresses[name])
        finally:
            # One that is reset within connect(2) was accepted as well.
            with self._lock:
                self.connected[name] += 1
        if kind == "stay":
            self.staying.append(client)
            exchange(client, b"x" * 10)
            return
        with client:
            if kind == "talk":
                exchange(client, b"x" * 5000)
            elif kind == "half":
                client.sendall(b"x" * 200_000)
                client.shutdown(socket.SHUT_WR)
                drain(client)
            elif kind == "reset":
                exchange(client)
                reset(client)
            elif kind == "at_once":
                reset(client)
            elif kind == "broken":
                client.sendall(b"x" * 100)
                drain(client)
            else:
                drain(client)


def test_mixed_storm_with_a_worker_killed_and_the_relay_interrupted(echo: Echo, start: Start) -> None:
    with Upstream(resetter(50)) as broken, Upstream(sender(b"x" * 300_000)) as download, refusing() as dead:
        relay = start(
            settings(
                listener(echo.address),
                listener(broken.address, name="broken"),
                listener(download.address, name="download"),
                listener(dead, name="refused"),
                workers=2,
            )
        )
        relay.expected_errors.add("worker died")
        storm = Storm({name: relay.address(name) for name in ("main", "broken", "download", "refused")})
        try:
            relay.wait_status(lambda status: status["connections"]["accepted"] > 100, what="in full swing")
            os.kill(relay.worker_pids()[0], signal.SIGKILL)
            storm.join()
            total = storm.connected.total()
            assert total == EACH * len(KINDS)
            # Every connection that a client got was accepted by somebody, the queue of the dead one included.
            status = relay.wait_status(lambda status: status["connections"]["accepted"] == total, what="all accepted")
            accepted = {item["name"]: item["accepted"] for item in status["listeners"]}
            assert accepted == dict(storm.connected)
            assert status["workers"][0]["restarts"] == 1
            relay.wait_status(
                lambda status: status["listeners"][0]["active"] == status["connections"]["active"] <= EACH,
                what="only those that stay left",
            )
            relay.signal(signal.SIGINT)
            assert relay.wait() == 0
        finally:
            storm.join()
            for client in storm.staying:
                client.close()
    relay.check()
    (last,) = relay.events("stopped")
    assert last["accepted"] == total == sum(last["outcomes"].values())
    assert set(last["outcomes"]) >= {"ok", "client_reset", "upstream_reset", "dial_refused", "shutdown", "worker_died"}
    assert "internal_error" not in last["outcomes"]
    (died,) = relay.events("worker died")
    assert died["connections_lost"] == last["outcomes"]["worker_died"]
    assert died["how"] == "signal SIGKILL"
