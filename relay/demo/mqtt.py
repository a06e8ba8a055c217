"""Simulated devices that speak MQTT, with paho-mqtt. What all devices have in common is in `devices`.

paho brings its own thread for each client; everything that it reports is handed to the event loop, so that a device's
state is touched by one thread only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from relay.demo import telemetry
from relay.demo.devices import CLOSED, CONNECT, CONNECTED, RETRY_MAX, RETRY_MIN, Device, Target

KEEPALIVE = 30  # seconds
GOODBYE = 1.0  # seconds for the TLS closing handshake
CLOSE = 8.0  # seconds to end paho's thread, which may be in the middle of an attempt to connect
NUDGE = 0.5  # seconds


class HubClient(paho.Client):
    """A client whose resolution of the hub's name gives the relay's address.

    paho would resolve the name itself, and has no setting for that. So this makes the connection in its place; the name
    stays what SNI says and what the certificate is held against.
    """

    def __init__(self, device: str, target: Target) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=device)
        self.target = target
        self.connections = 0
        self.failure = ""
        self.username_pw_set(telemetry.mqtt_user(target.hub, device))
        self.tls_set_context(target.authority)
        self.reconnect_delay_set(RETRY_MIN, RETRY_MAX)

    def _create_socket(self) -> ssl.SSLSocket:
        try:
            plain = socket.create_connection((self.target.address, self.target.port), CONNECT)
            self.connections += 1
            with plain:  # wrapping takes the descriptor over; until then, a failure closes it
                secure = self.target.authority.wrap_socket(
                    plain, server_hostname=self.target.hub, do_handshake_on_connect=False
                )
            try:
                secure.do_handshake()
            except BaseException:
                secure.close()
                raise
        except OSError as error:
            self.failure = str(error)
            raise
        return secure


class MqttDevice(Device):
    """Publishes its telemetry at QoS 1: paho sends again over the next connection what was not acknowledged."""

    protocol = telemetry.MQTT

    def __init__(self, name: str, target: Target, *, keep: bool = False) -> None:
        super().__init__(name, target, keep=keep)
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[float]] = {}  # by packet identifier; the time of its PUBACK
        self._client = client = HubClient(name, target)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_socket_close = _goodbye
        client.connect_async(target.hub, target.port, keepalive=KEEPALIVE)
        client.loop_start()

    async def _deliver(self, payload: bytes) -> float:
        started = time.perf_counter()
        info = self._client.publish(telemetry.topic(self.name), payload, qos=1)
        acknowledged: asyncio.Future[float] = self._loop.create_future()
        # Its PUBACK may be here already, but is told of by a callback on this loop, after this.
        self._pending[info.mid] = acknowledged
        return await acknowledged - started

    async def close(self) -> None:
        stopping = asyncio.create_task(asyncio.to_thread(self._client.loop_stop))
        deadline = self._loop.time() + CLOSE
        while not stopping.done() and self._loop.time() < deadline:
            # Once is not enough: a connection attempt that is under way makes paho forget it.
            self._client.disconnect()
            await asyncio.wait({stopping}, timeout=NUDGE)
        self.account.connections = self._client.connections
        self.state = CLOSED

    # Called in paho's thread.

    def _on_connect(self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._tell(self._connected, str(reason) if reason.is_failure else "")

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        self._tell(self._lost, self._client.failure)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        # paho's word for a connection that was cut is "Unspecified error".
        self._tell(self._lost, "connection lost" if reason == "Unspecified error" else str(reason))

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, _reason: ReasonCode, _properties: Any) -> None:
        self._tell(self._acknowledged, mid, time.perf_counter())

    def _tell(self, callback: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            pass  # the loop has ended, and with it anybody who would want to know

    # Called on the loop.

    def _connected(self, refusal: str) -> None:
        self.account.connections = self._client.connections
        if refusal:
            self._lost(refusal)
        else:
            self.state, self.error = CONNECTED, ""

    def _acknowledged(self, mid: int, moment: float) -> None:
        waiting = self._pending.pop(mid, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(moment)


def _goodbye(_client: paho.Client, _data: Any, sock: Any) -> None:
    """End TLS before TCP, as paho does not: bytes of the hub that meet a closed socket make the kernel reset."""
    try:
        sock.settimeout(GOODBYE)
        sock.unwrap().close()
    except (OSError, ValueError):
        pass  # the connection is gone already
