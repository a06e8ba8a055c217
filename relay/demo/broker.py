"""The MQTT half of the stand-in hub: amqtt's broker behind a TLS listener of asyncio.

It accepts every client without a password and records published telemetry. It routes no messages back to devices.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker, BrokerContext
from amqtt.errors import AMQTTError
from amqtt.plugins.base import BasePlugin
from amqtt.session import ApplicationMessage

from relay.demo import telemetry

Record = Callable[[telemetry.Arrival], None]

LISTENER = "default"
SHUTDOWN = 2.0  # seconds; devices may still be connected

log = logging.getLogger("relay.demo.broker")


class TelemetryPlugin(BasePlugin[BrokerContext]):
    """Records every message that a device publishes. amqtt creates the plugin and finds its methods by name."""

    @dataclass
    class Config:
        """The plugin's section of the broker's configuration."""

        record: Any  # a Record; amqtt's type check does not support Callable

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        self._record: Record = self._get_config_option("record")

    async def on_broker_message_received(self, *, client_id: str, message: ApplicationMessage) -> None:
        """Record a PUBLISH. IoT Hub requires `client_id` to be the device's id."""
        if message.topic != telemetry.topic(client_id):
            log.warning("%s published to %s: not its telemetry topic", client_id, message.topic)
            return
        try:
            self._record(telemetry.arrival(telemetry.MQTT, client_id, bytes(message.data)))
        except ValueError as error:
            log.warning("%s: %s", client_id, error)


class MqttEndpoint:
    """A broker that listens at one address."""

    def __init__(self, context: ssl.SSLContext, record: Record) -> None:
        self._context = context
        self._broker = Broker(
            {
                # "external": amqtt opens no port itself, because it cannot tell which port the kernel chose.
                "listeners": {LISTENER: {"type": "external"}},
                "plugins": {
                    "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
                    "relay.demo.broker.TelemetryPlugin": {"record": record},
                },
            }
        )
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Start to listen; returns the port, which the kernel chooses for 0. Raises OSError."""
        await self._broker.start()
        self._server = await asyncio.start_server(self._connected, host, port, ssl=self._context)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """End the sessions and the listener."""
        if self._server is not None:
            self._server.close()
        try:
            await asyncio.wait_for(self._broker.shutdown(), SHUTDOWN)
        except (TimeoutError, AMQTTError) as error:
            log.warning("the broker did not end well: %r", error)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._broker.external_connected(StreamReaderAdapter(reader), StreamWriterAdapter(writer), LISTENER)
