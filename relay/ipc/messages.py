"""Messages between supervisor and workers: frozen dataclasses, sent as JSON objects with a `kind`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

START_DESCRIPTORS = 4  # in a start message, at most, before the listening sockets


@dataclass(frozen=True, slots=True)
class Start:
    """To a worker, as its first message: start to serve.

    Its descriptors: a file with the WorkerSpec, the shared table, the shared rates, the customers' table if the
    WorkerSpec has one, then one listening socket for each of `addresses`.
    """

    kind: ClassVar[str] = "start"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """To a worker: serve new connections by a new WorkerSpec.

    Its descriptors: a file with the WorkerSpec, the customers' table if the WorkerSpec has one, then a listening socket
    for each of `addresses`. For the other addresses of the WorkerSpec the worker has a socket already.
    """

    kind: ClassVar[str] = "apply"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: it accepts connections."""

    kind: ClassVar[str] = "ready"
    pid: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """To a worker: the literal addresses of an upstream's host; empty: the name cannot be resolved."""

    kind: ClassVar[str] = "resolved"
    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """To a worker: the health checks found this address of an upstream up or down."""

    kind: ClassVar[str] = "checked"
    upstream: int  # its number
    host: str
    port: int
    up: bool


@dataclass(frozen=True, slots=True)
class Barred:
    """To a worker: the complete set of upstream addresses, host:port, that must not be dialled."""

    kind: ClassVar[str] = "barred"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllUp:
    """To a worker: take every address as up. A `Checked` follows for each one that is down."""

    kind: ClassVar[str] = "all_up"


@dataclass(frozen=True, slots=True)
class Failing:
    """From a worker: a connection could connect to no address of these hosts."""

    kind: ClassVar[str] = "failing"
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: stop accepting, close the established connections evenly, and at the end by force.

    Times are monotonic seconds, the same clock for all processes.
    """

    kind: ClassVar[str] = "drain"
    closed_at: float  # the last graceful close starts
    over_at: float  # connections still open are closed by force


@dataclass(frozen=True, slots=True)
class Stop:
    """To a worker: close all connections and end."""

    kind: ClassVar[str] = "stop"


@dataclass(frozen=True, slots=True)
class Log:
    """From a worker: a line for the service log (not the access log)."""

    kind: ClassVar[str] = "log"
    level: str
    logger: str
    text: str
    traceback: str = ""


Message = Start | Apply | Ready | Resolved | Checked | Barred | AllUp | Failing | Drain | Stop | Log


KINDS: dict[str, type[Message]] = {
    kind.kind: kind for kind in (Start, Apply, Ready, Resolved, Checked, Barred, AllUp, Failing, Drain, Stop, Log)
}


# Checks of field values, by annotation. They test the exact type, since in Python True is an int as well.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "float": lambda value: type(value) in (int, float),
    "tuple[str, ...]": lambda value: type(value) is tuple and all(type(item) is str for item in value),
}


_FIELDS = {
    name: {field.name: (_CHECKS[str(field.type)], field.default) for field in fields(kind)}
    for name, kind in KINDS.items()
}


class BadMessage(Exception):
    """The received bytes are not a valid message. The text says why, and quotes nothing of it."""


def decode(data: bytes) -> Message:
    """Decode a message from an untrusted sender. Raises BadMessage."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise BadMessage("it is not JSON") from None
    if type(raw) is not dict:
        raise BadMessage("it is not an object")
    kind = raw.pop("kind", None)
    expected = _FIELDS.get(kind) if type(kind) is str else None
    if expected is None:
        raise BadMessage("it is of an unknown kind")
    values = {name: tuple(value) if type(value) is list else value for name, value in raw.items()}
    if not values.keys() <= expected.keys():
        raise BadMessage(f"a field that {kind} does not have")
    for name, (check, default) in expected.items():
        if name not in values:
            if default is MISSING:
                raise BadMessage(f"{kind} without {name}")
        elif not check(values[name]):
            raise BadMessage(f"{kind} with a {name} of another type")
    make: Callable[..., Message] = KINDS[kind]
    return make(**values)
