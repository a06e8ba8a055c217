"""Routes together with the rest: PROXY headers both ways, drains, workers that die, MQTT by a real client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from relay.core import proxy_header
from tests.core.hellos import by_openssl
from tests.e2e.routes.places import route
from tests.e2e.traffic.test_mqtt import Broker
from tests.support.clients import connect, drain, receive
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.tls import Tls
from tests.support.upstreams import Echo, Upstream

NAME = "r.example"


def text(address: tuple[str, int]) -> str:
    return "{}:{}".format(*address)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_upstream_of_a_route_gets_the_header(echo: Echo, start: Start, version: str) -> None:
    came: list[bytes] = []

    def take(sock: socket.socket) -> None:
        came.append(drain(sock))

    with Upstream(take) as server:
        more = f'send_proxy_protocol = "{version}"\nproxy_protocol = "accept"\n'
        relay = start(settings(listener(echo.address, more=more + route("r", NAME, to=text(server.address)))))
        hello = by_openssl(NAME)
        claimed = proxy_header.build(2, ("192.0.2.77", 1234), ("192.0.2.200", 8883))
        for header in (b"", claimed):
            with connect(relay.address()) as client:
                own = client.getsockname()
                client.sendall(header + hello + b"more")
                client.shutdown(socket.SHUT_WR)
                assert drain(client) == b""
            source = ("192.0.2.77", 1234) if header else own
            found = proxy_header.parse(came[-1])
            assert found is not None
            assert found.source == source
            assert came[-1][found.size :] == hello + b"more"


def test_a_drain_closes_the_connections_of_routes(echo: Echo, start: Start) -> None:
    with Echo() as server:
        routed = route("r", NAME, to=text(server.address))
        relay = start(settings(listener(echo.address, more=routed), workers=2, tables="[drain]\nwindow = 0.5\n"))
        hello = by_openssl(NAME)
        with connect(relay.address()) as client:
            client.sendall(hello)
            assert receive(client, len(hello)) == hello
            relay.post("/drain")
            assert drain(client) == b""
        relay.wait_outcomes({"drained": 1})
        assert relay.status()["listeners"][0]["routes"][0]["outcomes"] == {"drained": 1}


def test_what_was_counted_for_a_route_outlives_its_worker(echo: Echo, start: Start) -> None:
    with Echo() as server:
        relay = start(settings(listener(echo.address, more=route("r", NAME, to=text(server.address)))))
        relay.expected_errors.add("worker died")
        hello = by_openssl(NAME)
        with connect(relay.address()) as client:
            client.sendall(hello)
            assert receive(client, len(hello)) == hello
            relay.wait_status(lambda status: status["listeners"][0]["routes"][0]["bytes_down"] == len(hello))
            os.kill(relay.worker_pids()[0], signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        relay.wait_status(lambda status: status["listeners"][0]["routes"][0]["outcomes"] == {"worker_died": 1})
        relay.wait_status(lambda status: status["workers"][0]["ready"])
        with connect(relay.address()) as client:
            client.sendall(hello)
            assert receive(client, len(hello)) == hello
            found = relay.status()["listeners"][0]["routes"][0]
            assert (found["accepted"], found["active"]) == (2, 1)


def test_a_device_publishes_over_a_route(echo: Echo, start: Start, tmp_path: Path) -> None:
    mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    tls = Tls(tmp_path)
    with Broker(tls.server) as broker:
        relay = start(settings(listener(echo.address, more=route("r", "localhost", to=text(broker.address)))))
        published = threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="device")
        client.tls_set_context(tls.client())
        client.on_connect = lambda *_: client.publish("devices/device/telemetry", "1", qos=1)
        client.on_publish = lambda *_: published.set()
        client.connect("localhost", relay.address()[1])
        client.loop_start()
        try:
            assert published.wait(10)
        finally:
            client.disconnect()
            client.loop_stop()
        relay.wait_active(0)
        found = relay.status()["listeners"][0]["routes"][0]
        assert found["accepted"] == 1
        assert found["bytes_up"] > 100
        assert echo.served == 0
