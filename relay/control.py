"""What supervisor and workers say to each other: typed messages over a Unix socket pair, descriptors included.

SOCK_SEQPACKET keeps messages whole: a process that dies in the middle of something leaves no half of one behind, and
its end of the pair closing is itself the message that it is gone. Neither side ever waits for the other: a message that
does not fit into the socket's buffer is refused to the sender, who then knows that the other side has not been reading.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar

MAX_MESSAGE = 1 << 17  # bytes; below the default net.core.wmem_default
MAX_DESCRIPTORS = 250  # per message; the kernel takes SCM_MAX_FD = 253, net/scm.h
START_DESCRIPTORS = 3  # of a start message before the listening sockets
MOST_OWED = 10_000  # messages that are kept for a worker that does not read


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

SO_PASSRIGHTS = 83  # asm-generic/socket.h, since Linux 6.16
_NO_LINGER = struct.pack("ii", 1, 0)  # close(2) resets at once, socket(7)


class ChannelFull(Exception):
    """The other side has not been reading."""


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


class Channel:
    """One end of the pair. `fileno` becomes readable when there is something to `receive`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Raises ChannelFull, or OSError (the other side is gone), or ValueError (too long)."""
        data = json.dumps({"kind": message.kind, **asdict(message)}).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a control message of {len(data)} bytes; at most {MAX_MESSAGE}")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"{len(descriptors)} descriptors in one control message; at most {MAX_DESCRIPTORS}")
        try:
            socket.send_fds(self._sock, [data], list(descriptors), socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            raise ChannelFull from error

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors; None when the other side is gone.

        Raises BlockingIOError, there is none yet, or BadMessage, with which no descriptor is left.
        """
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._sock, MAX_MESSAGE, MAX_DESCRIPTORS)
        except ConnectionResetError:
            return None
        try:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            if not data:
                discard(descriptors)
                return None
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise BadMessage("it is too long, or there was no room for its descriptors")
            return decode(data), descriptors
        except BaseException:
            discard(descriptors)
            raise

    def hear(self) -> Message | None:
        """The same from a side that is not trusted, and has no descriptors to send. Raises BadMessage if it does."""
        received = self.receive()
        if received is None:
            return None
        message, descriptors = received
        if descriptors:
            discard(descriptors)
            raise BadMessage(f"{message.kind} with descriptors")
        return message

    def refuse_descriptors(self) -> None:
        """Let the kernel refuse them to the other side, where it can: no message to this side has any."""
        with contextlib.suppress(OSError):  # an older kernel; `hear` closes them
            self._sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to receive; False if there was nothing in that time."""
        # poll(2): select(2) takes no descriptor from FD_SETSIZE, 1,024, on.
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        self._sock.close()


class Outbox:
    """What a worker is told over its channel: everything that holds, which `everything` gives, then each change.

    One that does not read is owed the last word on each matter and no more, so it has soon caught up when it reads
    again. Should these be more than MOST_OWED, they are forgotten, and it is told everything anew, which may be more
    than the channel has room for.
    """

    def __init__(self, channel: Channel, everything: Callable[[], list[Message]]) -> None:
        self._channel = channel
        self._everything = everything
        self._owed: OrderedDict[tuple[str | int, ...], Message] = OrderedDict()  # by what it is about, the oldest first
        self._anew = True

    def fileno(self) -> int:
        return self._channel.fileno()

    def add(self, message: Message) -> None:
        """A change, to be sent."""
        if not self._anew:
            self._owed[_about(message)] = message
            if len(self._owed) > MOST_OWED:
                self.renew()

    def renew(self) -> None:
        """Everything is to be told anew."""
        self._owed.clear()
        self._anew = True

    def send(self) -> bool:
        """Send what the channel has room for; whether that was all. Raises OSError: the worker is gone."""
        if self._anew:
            self._anew = False
            self._owed.update((_about(message), message) for message in self._everything())
        while self._owed:
            about, message = self._owed.popitem(last=False)
            try:
                self._channel.send(message)
            except ChannelFull:
                self._owed[about] = message
                self._owed.move_to_end(about, last=False)
                return False
        return True


def discard(descriptors: Sequence[int]) -> None:
    """Close descriptors of an unknown kind. A socket may be one that lingers (socket(7)), which close(2) waits for."""
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # not a socket
            with contextlib.suppress(OSError):  # an error of its own at the end, EIO for example
                os.close(descriptor)
            continue
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        with contextlib.suppress(OSError):
            sock.close()


def _about(message: Message) -> tuple[str | int, ...]:
    """What a later message with the same makes void."""
    if isinstance(message, Resolved):
        return message.kind, message.host
    if isinstance(message, Checked):
        return message.kind, message.host, message.port
    return (message.kind,)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, not yet wrapped."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
