"""Simulated devices that speak MQTT, with paho-mqtt. Their base class is in `devices`.

paho runs a thread for each client. Its callbacks hand everything to the event loop, so that only one thread touches the
state of a device.
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
NUDGE = 0.5  # seconds between two attempts to disconnect


class HubClient(paho.Client):
    """A paho client that connects to the relay's address under the hub's name.

    paho resolves the name itself and has no setting for another address, so this class makes the connection. The hub's
    name is still sent in SNI and verified against the certificate.
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
    """A device that publishes at QoS 1: paho sends unacknowledged messages again over the next connection."""

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
        client.on_socket_close = _end_tls
        client.connect_async(target.hub, target.port, keepalive=KEEPALIVE)
        client.loop_start()

    async def _deliver(self, payload: bytes) -> float:
        started = time.perf_counter()
        info = self._client.publish(telemetry.topic(self.name), payload, qos=1)
        acknowledged: asyncio.Future[float] = self._loop.create_future()
        # The PUBACK may have come already, but its callback runs on this loop, so after this line.
        self._pending[info.mid] = acknowledged
        return await acknowledged - started

    async def close(self) -> None:
        stopping = asyncio.create_task(asyncio.to_thread(self._client.loop_stop))
        deadline = self._loop.time() + CLOSE
        while not stopping.done() and self._loop.time() < deadline:
            # One call is not enough: a connection attempt under way makes paho forget the disconnect.
            self._client.disconnect()
            await asyncio.wait({stopping}, timeout=NUDGE)
        self.account.connections = self._client.connections
        self.state = CLOSED

    # Called in paho's thread.

    def _on_connect(self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._call_on_loop(self._connected, str(reason) if reason.is_failure else "")

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        self._call_on_loop(self._lost, self._client.failure)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        # paho's word for a connection that was cut is "Unspecified error".
        self._call_on_loop(self._lost, "connection lost" if reason == "Unspecified error" else str(reason))

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, _reason: ReasonCode, _properties: Any) -> None:
        self._call_on_loop(self._acknowledged, mid, time.perf_counter())

    def _call_on_loop(self, callback: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            pass  # the loop has ended, and nothing waits for this any more

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


def _end_tls(_client: paho.Client, _data: Any, sock: Any) -> None:
    """End TLS before TCP, which paho does not: bytes from the hub that meet a closed socket cause a reset."""
    try:
        sock.settimeout(GOODBYE)
        sock.unwrap().close()
    except (OSError, ValueError):
        pass  # the connection is gone already
