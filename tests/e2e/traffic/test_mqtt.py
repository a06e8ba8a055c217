"""MQTT over TLS through the relay: a real client, a real broker, messages both ways."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.tls import Tls

pytest.importorskip("amqtt", reason="amqtt is not installed")
mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

MESSAGES = 50


class Broker:
    """An amqtt broker on a loopback port, in a loop and thread of its own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Broker:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
        from amqtt.broker import Broker as Amqtt

        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        broker = Amqtt({"listeners": {"default": {"type": "external"}}, "plugins": plugins})
        await broker.start()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await broker.external_connected(StreamReaderAdapter(reader), StreamWriterAdapter(writer), "default")

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=self._context)
        self.address: tuple[str, int] = server.sockets[0].getsockname()
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._end.wait()
        server.close()
        await broker.shutdown()


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


@pytest.fixture
def broker(tls: Tls) -> Iterator[Broker]:
    with Broker(tls.server) as running:
        yield running


def test_publish_and_subscribe(tls: Tls, broker: Broker, start: Start) -> None:
    relay = start(settings(listener(broker.address, name="mqtt")))
    host, port = relay.address("mqtt")
    assert host == "127.0.0.1"
    got: Queue[bytes] = Queue()
    subscribed = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="device")
    client.tls_set_context(tls.client())
    client.on_connect = lambda *_: client.subscribe("devices/device/#", qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: got.put(message.payload)
    client.connect("localhost", port)
    client.loop_start()
    try:
        assert subscribed.wait(10)
        for number in range(MESSAGES):
            client.publish("devices/device/telemetry", str(number), qos=1)
        assert [int(got.get(timeout=10)) for _ in range(MESSAGES)] == list(range(MESSAGES))
    finally:
        client.disconnect()
        client.loop_stop()
    # paho closes its socket without waiting for the broker's farewell; if that is there by then the kernel resets.
    ends = ({"ok": 1}, {"client_reset": 1})
    wait_until(lambda: relay.metrics().outcomes("mqtt") in ends, what="the connection ended")
    assert tls.names == ["localhost"]
