"""The control channel between supervisor and worker: typed messages, with descriptors, over a Unix socket pair.

SOCK_SEQPACKET keeps messages whole: a process that dies while sending leaves no partial message, and the other side
sees its end of the pair close. Neither side ever waits for the other: a message that does not fit into the socket
buffer raises ChannelFull at the sender, which then knows that the other side is not reading.
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
_LINGER_ZERO = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close(2) resets at once, socket(7)


class ChannelFull(Exception):
    """The socket buffer is full: the other side is not reading."""


class Channel:
    """One end of the socket pair. `fileno` is readable while there is a message to `receive`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message. Raises ChannelFull, OSError (the other side is gone), or ValueError (too long)."""
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
        """Receive the next message and its descriptors; None if the other side is gone.

        Raises BlockingIOError if there is no message yet, and BadMessage, after closing all received descriptors.
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
        """Receive a message from an untrusted sender, which must not send descriptors; BadMessage if it does."""
        received = self.receive()
        if received is None:
            return None
        message, descriptors = received
        if descriptors:
            discard(descriptors)
            raise BadMessage(f"{message.kind} with descriptors")
        return message

    def refuse_descriptors(self) -> None:
        """Make the kernel refuse to pass descriptors to this side, where it can: no message to it has any."""
        with contextlib.suppress(OSError):  # an older kernel; `hear` closes the descriptors instead
            self._sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)

    def wait(self, seconds: float) -> bool:
        """Wait for a message to receive, for at most `seconds`; False if none came."""
        # poll(2), because select(2) takes only descriptors below FD_SETSIZE, 1,024.
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        self._sock.close()


def discard(descriptors: Sequence[int]) -> None:
    """Close received descriptors without waiting: close(2) of a socket with SO_LINGER could block (socket(7))."""
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # not a socket
            with contextlib.suppress(OSError):  # close(2) may report an earlier error, such as EIO
                os.close(descriptor)
            continue
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        with contextlib.suppress(OSError):
            sock.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make both ends of a channel, as plain sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
