"""Messages between supervisor and workers: frozen dataclasses that travel as JSON objects with a `kind`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

START_DESCRIPTORS = 3  # of a start message before the listening sockets


@dataclass(frozen=True, slots=True)
class Start:
    """To a worker, first of all. With descriptors: a file that has its WorkerSpec, the table, that of the rates, and
    then its listening sockets, which are at these addresses."""

    kind: ClassVar[str] = "start"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """To a worker: serve like this from now on. With descriptors: a file that has its new WorkerSpec, and then its
    listening sockets at these addresses; at others it has them."""

    kind: ClassVar[str] = "apply"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: it accepts."""

    kind: ClassVar[str] = "ready"
    pid: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """To a worker: an upstream's addresses, literal, from now on; none: the name cannot be resolved."""

    kind: ClassVar[str] = "resolved"
    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """To a worker: the checks have found this address up, or down."""

    kind: ClassVar[str] = "checked"
    host: str
    port: int
    up: bool


@dataclass(frozen=True, slots=True)
class Barred:
    """To a worker: the upstream addresses, host:port, that are never dialled from now on; all others may be."""

    kind: ClassVar[str] = "barred"
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllUp:
    """To a worker: whatever it was told of checks is void. Those that are down are told of next."""

    kind: ClassVar[str] = "all_up"


@dataclass(frozen=True, slots=True)
class Failing:
    """From a worker: no address of these hosts can be connected to."""

    kind: ClassVar[str] = "failing"
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: accept no more, close what is established evenly until then, and what is left by force.

    Times are monotonic seconds, the same clock for all processes.
    """

    kind: ClassVar[str] = "drain"
    closed_at: float
    over_at: float


@dataclass(frozen=True, slots=True)
class Stop:
    """To a worker: close everything and end."""

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


# What a field may hold, by its annotation. Exactly that type: in Python, True is an int as well.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "float": lambda value: type(value) in (int, float),
    "tuple[str, ...]": lambda value: type(value) is tuple and all(type(item) is str for item in value),
}


_FIELDS = {
    name: {field.name: (_FITS[str(field.type)], field.default) for field in fields(kind)}
    for name, kind in KINDS.items()
}


class BadMessage(Exception):
    """What has come is no message; the text says why, and has nothing of it."""


def decode(data: bytes) -> Message:
    """A message from what was sent, whoever sent it. Raises BadMessage."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise BadMessage("it is not JSON") from None
    if type(raw) is not dict:
        raise BadMessage("it is not an object")
    kind = raw.pop("kind", None)
    expected = _FIELDS.get(kind) if type(kind) is str else None
    if expected is None:
        raise BadMessage("it is of no kind that there is")
    values = {name: tuple(value) if type(value) is list else value for name, value in raw.items()}
    if not values.keys() <= expected.keys():
        raise BadMessage(f"a field that {kind} does not have")
    for name, (fits, default) in expected.items():
        if name not in values:
            if default is MISSING:
                raise BadMessage(f"{kind} without {name}")
        elif not fits(values[name]):
            raise BadMessage(f"{kind} with a {name} of another type")
    make: Callable[..., Message] = KINDS[kind]
    return make(**values)
