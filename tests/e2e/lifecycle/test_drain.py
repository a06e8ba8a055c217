"""Going out of service: announced first, then nothing new, then established connections closed one after the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack

from tests.support.clients import connect, drain, echoes, exchange
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import RELAY, environment
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream

LONG = {"RELAY_DRAIN__ANNOUNCE": "600.0"}
CROWD = 30


def window(seconds: float) -> str:
    return f"[drain]\nwindow = {seconds}\n"


def refuses(relay: Relay) -> bool:
    try:
        connect(relay.address()).close()
    except ConnectionError:
        return True
    return False


def command(relay: Relay, *words: str) -> subprocess.CompletedProcess[str]:
    host, port = relay.address("admin")
    line = [*RELAY, *words, "--admin", f"http://{host}:{port}"]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), check=False, timeout=30)


def test_it_accepts_while_it_is_announced_and_can_be_taken_back(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2), environ=LONG)
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        assert relay.post("/drain")[0] == 202
        assert relay.get("/readyz") == (503, "draining\n")
        assert relay.get("/healthz")[1] == '{"ApplicationHealthState": "Healthy"}'
        status = relay.wait_phase("announcing")
        assert status["state"] == "draining"
        assert 0 < status["drain"]["seconds_left"] <= 660
        metrics = relay.metrics()
        assert metrics.value("relay_draining") == 1
        assert metrics.by_label("relay_drain_phase", "phase")["announcing"] == 1
        assert metrics.value("relay_drain_seconds_left") > 600
        assert echoes(relay.address()), "the load balancer may not have noticed yet"
        assert relay.post("/undrain") == (200, "ok\n")
        assert relay.get("/readyz") == (200, "ok\n")
        assert relay.status()["drain"] is None
        assert exchange(client) == b"ping"
    wait_until(lambda: relay.events("serving again"), what="the log saying so")


def test_connections_are_closed_one_after_the_other_the_oldest_first(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(2.0)))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(CROWD)]
        assert all(exchange(client) == b"ping" for client in clients)
        began = time.monotonic()
        assert relay.post("/drain")[0] == 202
        for number, client in enumerate(clients):
            assert drain(client) == b""
            client.close()
            if number == CROWD // 2:
                assert exchange(clients[-1]) == b"ping", "the youngest goes on meanwhile"
        assert time.monotonic() - began >= 1.5
        relay.wait_phase("drained")
    relay.wait_outcomes({"drained": CROWD})
    assert {(line["outcome"], line["state"]) for line in relay.access(CROWD)} == {("drained", "KD")}
    assert refuses(relay)


def test_what_clients_sent_before_they_saw_the_end_arrives(start: Start) -> None:
    """No device learns of a drain before the relay has closed; what it has sent until then may not be lost."""
    got: dict[int, int] = {}
    lock = threading.Lock()

    def collect(sock: socket.socket) -> None:
        data = drain(sock)
        assert data[4:] == bytes(len(data) - 4)
        with lock:
            got[int.from_bytes(data[:4])] = len(data) - 4

    def send(sock: socket.socket, number: int, sent: dict[int, int]) -> None:
        sock.sendall(number.to_bytes(4))
        count = 0
        sock.settimeout(0.001)
        while True:
            try:
                if sock.recv(1) == b"":
                    break
            except TimeoutError:
                pass
            sock.settimeout(10)
            sock.sendall(bytes(997))
            sock.settimeout(0.001)
            count += 997
        sock.close()
        sent[number] = count

    with Upstream(collect) as upstream:
        relay = start(settings(listener(upstream.address), workers=2, tables=window(1.0)))
        sent: dict[int, int] = {}
        threads = [
            threading.Thread(target=send, args=(connect(relay.address()), number, sent)) for number in range(CROWD)
        ]
        for thread in threads:
            thread.start()
        relay.wait_active(CROWD)
        relay.signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert relay.wait() == 0
        wait_until(lambda: len(got) == CROWD, what="every upstream connection ended")
    assert len(sent) == CROWD
    assert got == sent


def test_a_drained_relay_lives_on_and_serves_again(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(0.2)))
    for _ in range(2):
        with connect(relay.address()) as client:
            assert exchange(client) == b"ping"
            assert relay.post("/drain")[0] == 202
            assert drain(client) == b""
        relay.wait_phase("drained")
        assert refuses(relay)
        assert relay.get("/livez") == (200, "ok\n")
        assert relay.post("/undrain") == (200, "ok\n")
        assert echoes(relay.address())
        assert relay.get("/readyz") == (200, "ok\n")


def test_undrain_while_connections_are_being_closed_keeps_the_others(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(60.0)))
    with connect(relay.address()) as first, connect(relay.address()) as second:
        assert exchange(first) == exchange(second) == b"ping"
        relay.post("/drain")
        relay.wait_phase("closing")
        wait_until(lambda: refuses(relay), what="no new connections")
        assert relay.post("/undrain") == (200, "ok\n")
        assert echoes(relay.address())
        assert exchange(first) == exchange(second) == b"ping"


def test_sigterm_ends_what_an_operator_began_and_cannot_be_taken_back(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(60.0)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.post("/drain")
        relay.wait_phase("closing")
        relay.signal(signal.SIGTERM)
        relay.wait_status(lambda status: status["drain"]["ends"], what="it ends")
        code, text = relay.post("/undrain")
        assert code == 409
        assert "told to end" in text
        assert exchange(client) == b"ping"
    assert relay.wait() == 0


def test_a_drained_relay_ends_at_once_on_sigterm(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(60.0)))
    relay.post("/drain")
    relay.wait_phase("drained")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0


def test_the_commands(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(0.3)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        done = command(relay, "drain", "--wait")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == "draining"
        assert done.stdout.splitlines()[-1].startswith("drained: 0 connections")
        assert drain(client) == b""
    assert "drain (admin): drained" in command(relay, "status").stdout
    done = command(relay, "undrain")
    assert (done.returncode, done.stdout) == (0, "serving\n")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    done = command(relay, "drain")
    assert done.returncode == 1
    assert "no relay answers" in done.stderr


def test_a_worker_that_dies_in_a_drain_is_replaced_when_it_is_taken_back(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=window(60.0)))
    relay.expected_errors.add("worker died")
    with ExitStack() as stack:
        for _ in range(20):
            assert exchange(stack.enter_context(connect(relay.address()))) == b"ping"
        relay.post("/drain")
        relay.wait_phase("closing")
        victim = relay.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        relay.wait_status(lambda status: status["workers"][0]["pid"] is None, what="a worker less")
    relay.wait_phase("drained")
    assert relay.status()["workers"][0]["pid"] is None, "nothing is left for it to do"
    assert relay.post("/undrain") == (200, "ok\n")
    relay.wait_status(lambda status: all(worker["ready"] for worker in status["workers"]), what="all workers")
    assert echoes(relay.address())


def test_a_port_that_was_taken_meanwhile_is_said_and_tried_again(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=window(0.0)))
    relay.post("/drain")
    relay.wait_phase("drained")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def steal() -> bool:
            try:
                thief.bind(relay.address())
            except OSError:
                return False
            return True

        wait_until(steal, what="the port is free")
        thief.listen()
        code, text = relay.post("/undrain")
        assert code == 409
        assert "listeners.main.bind" in text
        assert relay.status()["drain"]["phase"] == "drained"
    assert relay.post("/undrain") == (200, "ok\n")
    assert echoes(relay.address())


def test_orders_from_other_sites_pages_are_refused(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    host, port = relay.address("admin")
    assert relay.post("/drain", {"Origin": "http://attacker.example"})[0] == 403
    assert relay.status()["drain"] is None
    assert relay.get("/drain")[0] == 405
    assert relay.post("/undrain", {"Origin": f"http://{host}:{port}"})[0] == 200
    # DNS rebinding: to the browser the page is of this very site, whose name the page's owner has pointed here.
    rebound = {"Origin": f"http://attacker.example:{port}", "Host": f"attacker.example:{port}"}
    assert relay.post("/drain", rebound)[0] == 403
    assert relay.status()["drain"] is None
    health = relay.address("health")
    with connect(health) as client:
        client.sendall(b"POST /drain HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")
    assert relay.status()["drain"] is None
