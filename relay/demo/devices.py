"""Simulated devices: their base class, and the devices that speak HTTPS.

A device connects to the hub by name. It sends the name in SNI and verifies the certificate against the name and the
demo's authority, so it can only be talking to the hub, whatever passes the bytes. Only its name resolution is replaced:
it answers with the relay's address, as a private DNS zone does in production.
"""

from __future__ import annotations

import abc
import asyncio
import random
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from relay.demo import telemetry

RETRY_MIN, RETRY_MAX = 1, 4  # seconds between attempts to connect, doubling
CONNECT = 5.0  # seconds that a connection attempt may take
ANSWER = 15.0  # seconds that a request may take, connecting included
KEPT = 1000  # round trips kept for the summary

CONNECTING = "connecting"
CONNECTED = "connected"
RETRYING = "retrying"
CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a device connects: the hub's name, and the address that the device resolves it to."""

    hub: str  # host name
    address: str
    port: int
    authority: ssl.SSLContext


def trust(authority_pem: str) -> ssl.SSLContext:
    """A TLS context that trusts this authority alone and checks the hub's name. Raises OSError."""
    return ssl.create_default_context(cafile=authority_pem)


@dataclass(slots=True)
class Sent:
    """A device's own count of what it sent."""

    sent: int = 0
    acknowledged: int = 0
    payload_bytes: int = 0
    connections: int = 0  # TCP connections that were established
    digests: dict[telemetry.Key, str] | None = None  # of every message; None: not kept, because the run has no end
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))  # seconds


class Device(abc.ABC):
    """A device that makes messages. Subclasses deliver them."""

    protocol: str

    def __init__(self, name: str, target: Target, *, keep: bool = False) -> None:
        self.name = name
        self.target = target
        self.state = CONNECTING
        self.error = ""  # why it is retrying
        self.account = Sent(digests={} if keep else None)
        self._temperature = random.uniform(18.0, 24.0)

    async def run(self, count: int | None, interval: float) -> None:
        """Send `count` messages (None: without end), each about `interval` seconds after the last was acknowledged."""
        await asyncio.sleep(random.uniform(0, interval))  # devices are not in step
        while count is None or self.account.sent < count:
            sequence = self.account.sent + 1
            self._temperature += random.uniform(-0.2, 0.2)
            payload = telemetry.encode(self.name, sequence, self._temperature, random.uniform(40.0, 60.0))
            self.account.sent = sequence
            self.account.payload_bytes += len(payload)
            if self.account.digests is not None:
                self.account.digests[telemetry.Key(self.name, sequence)] = telemetry.digest(payload)
            seconds = await self._deliver(payload)
            self.account.acknowledged += 1
            self.account.round_trips.append(seconds)
            await asyncio.sleep(interval * random.uniform(0.8, 1.2))

    @abc.abstractmethod
    async def _deliver(self, payload: bytes) -> float:
        """Send a message until the hub acknowledges it, reconnecting if needed; returns the seconds that this took."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close the connection in order."""

    def _lost(self, error: BaseException | str) -> None:
        self.state, self.error = RETRYING, str(error)


class RelayResolver(AbstractResolver):
    """The device's name resolution: knows the hub's name alone."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The relay's address for the hub's name. Raises OSError for any other."""
        if host != self._target.hub:
            raise OSError(f"this device knows no {host}")
        return [
            ResolveResult(hostname=host, host=self._target.address, port=port, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        """Nothing to close."""


class HttpsDevice(Device):
    """A device that posts its telemetry over one persistent connection."""

    protocol = telemetry.HTTPS

    def __init__(self, name: str, target: Target, *, keep: bool = False) -> None:
        super().__init__(name, target, keep=keep)
        path = f"{telemetry.path(name)}?api-version={telemetry.API_VERSION}"
        self._url = f"https://{target.hub}:{target.port}{path}"
        self._http: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            trace = aiohttp.TraceConfig()

            async def connected(*_: object) -> None:
                self.account.connections += 1

            trace.on_connection_create_end.append(connected)
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=RelayResolver(self.target), ssl=self.target.authority, limit=1, use_dns_cache=False
                ),
                timeout=aiohttp.ClientTimeout(total=ANSWER, connect=CONNECT),
                trace_configs=[trace],
            )
        return self._http

    async def _deliver(self, payload: bytes) -> float:
        wait = RETRY_MIN
        while True:
            try:
                started = time.perf_counter()
                async with self._session().post(
                    self._url, data=payload, headers={"Content-Type": "application/json"}
                ) as answer:
                    if answer.status == 204:
                        self.state, self.error = CONNECTED, ""
                        return time.perf_counter() - started
                    self._lost(f"the hub answered {answer.status} {(await answer.text()).strip()}")
            except (aiohttp.ClientError, TimeoutError) as error:
                self._lost(str(error) or type(error).__name__)
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_MAX)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        self.state = CLOSED
