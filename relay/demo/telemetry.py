"""The demo's telemetry: names, paths, payloads, and the line that records an arrival.

Plain values and their encodings, shared by devices and hub; nothing here opens a connection. The names and paths are
IoT Hub's own (learn.microsoft.com, iot-hub-devguide-endpoints and iot-mqtt-connect-to-iot-hub), so that the demo's
traffic looks like the real thing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

HUB_NAME = "demo-hub.azure-devices.net"
API_VERSION = "2021-04-12"

MQTT = "mqtt"
HTTPS = "https"
PROTOCOLS = (MQTT, HTTPS)

AMQP_NOTE = "no AMQP here: no AMQP 1.0 server that pip installs without a compiler could stand in for the hub's"


class Key(NamedTuple):
    """Identifies a message."""

    device: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message as the hub received it."""

    protocol: str
    device: str
    sequence: int
    digest: str  # of the payload: a message has arrived only if every byte has

    @property
    def key(self) -> Key:
        return Key(self.device, self.sequence)

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: bytes) -> Arrival:
        return cls(**json.loads(line))


def topic(device: str) -> str:
    """The MQTT topic that a device publishes its telemetry to."""
    return f"devices/{device}/messages/events/"


def path(device: str) -> str:
    """The HTTPS path that a device posts its telemetry to."""
    return f"/devices/{device}/messages/events"


def mqtt_user(hub: str, device: str) -> str:
    """The MQTT user name. IoT Hub requires the hub's name in it, one reason why devices cannot connect by address."""
    return f"{hub}/{device}/?api-version={API_VERSION}"


def encode(device: str, sequence: int, temperature: float, humidity: float) -> bytes:
    """The payload of one message; temperature in degrees Celsius, humidity in per cent."""
    body = {
        "deviceId": device,
        "sequence": sequence,
        "temperature": round(temperature, 2),
        "humidity": round(humidity, 2),
    }
    return json.dumps(body).encode()


def digest(payload: bytes) -> str:
    """A hash that identifies a payload."""
    return hashlib.sha256(payload).hexdigest()


def arrival(protocol: str, device: str, payload: bytes) -> Arrival:
    """The record of a payload from `device`. Raises ValueError if it is not that device's telemetry."""
    try:
        body = json.loads(payload)
        named, sequence = body["deviceId"], body["sequence"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not telemetry: {error!r}") from None
    if named != device:
        raise ValueError(f"telemetry of {named!r} sent by {device!r}")
    if type(sequence) is not int:
        raise ValueError(f"sequence {sequence!r}: not a whole number")
    return Arrival(protocol, device, sequence, digest(payload))
