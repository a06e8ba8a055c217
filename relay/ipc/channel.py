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
from collections.abc import Sequence
from dataclasses import asdict

from relay.ipc.messages import BadMessage, Message, decode

MAX_MESSAGE = 1 << 17  # bytes; below the default net.core.wmem_default
MAX_DESCRIPTORS = 250  # per message; the kernel takes SCM_MAX_FD = 253, net/scm.h


SO_PASSRIGHTS = 83  # asm-generic/socket.h, since Linux 6.16
_NO_LINGER = struct.pack("ii", 1, 0)  # close(2) resets at once, socket(7)


class ChannelFull(Exception):
    """The other side has not been reading."""


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


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, not yet wrapped."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
