"""What the kernel knows of the far end of a TCP socket: has it everything, has it finished, does it answer."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

PROBES = 2  # without an answer: a peer that was probed half a second ago leaves one out (tcp_invalid_ratelimit)

# struct tcp_info, linux/tcp.h. Probes; unacked; last_data_sent, last_ack_recv (both milliseconds ago); notsent_bytes
# (since Linux 4.6).
_ANSWERS = struct.Struct("=3xB 20x I 16x I 8x I 84x I")
_RECEIVED = struct.Struct("=128xQ")  # bytes_received, since Linux 4.1
_buffer = ctypes.create_string_buffer(max(_ANSWERS.size, _RECEIVED.size))
_pointer = ctypes.c_void_p(ctypes.addressof(_buffer))
# PyDLL keeps the interpreter lock: giving it up costs more than the call.
_getsockopt = ctypes.PyDLL(None).getsockopt


class PeerState(NamedTuple):
    """Whether a peer owes an answer, and for how long it has given none."""

    owes: bool  # it has not acknowledged everything, or its window has no room for what is to be sent
    asked: bool  # something was sent to it after its last answer, or probes of its closed window
    silent: float  # seconds since its last answer


OWES_NOTHING = PeerState(False, False, 0.0)


def peer_state(fd: int) -> PeerState:
    """The state of the peer of a TCP socket; OWES_NOTHING if the descriptor is no TCP socket."""
    if not _read_tcp_info(fd, _ANSWERS.size):
        return OWES_NOTHING
    probes, unacked, sent, answered, not_sent = _ANSWERS.unpack_from(_buffer)
    asked = sent < answered if unacked else probes >= PROBES
    return PeerState(bool(unacked or not_sent), asked, answered / 1000)


def acknowledged(fd: int) -> bool:
    """True if the peer has acknowledged everything sent, FIN included (tcp(7): SIOCOUTQ, which is TIOCOUTQ)."""
    return not _queue_size(fd, termios.TIOCOUTQ)


def fin_received(fd: int, received: int) -> bool:
    """True if the kernel has received the peer's FIN, even behind bytes that were not read yet.

    `received`: bytes read from the socket so far. The answer is right after a reset too, when the TCP state no longer
    tells: the FIN counts as a byte in tcp_info.bytes_received (tcp_rcv_nxt_update), but not in SIOCINQ. A byte of
    urgent data does the same, and recv(2) does not return it: a peer that sent a single such byte counts as finished.
    """
    if not _read_tcp_info(fd, _RECEIVED.size):
        return False
    (total,) = _RECEIVED.unpack_from(_buffer)
    return bool(total == received + _queue_size(fd, termios.FIONREAD) + 1)


def _read_tcp_info(fd: int, wanted: int) -> bool:
    """Read TCP_INFO into the buffer; False if the kernel does not give the `wanted` bytes of it."""
    size = ctypes.c_int(wanted)
    failed = _getsockopt(fd, int(socket.IPPROTO_TCP), socket.TCP_INFO, _pointer, ctypes.byref(size))
    return not failed and size.value >= wanted


def _queue_size(fd: int, request: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(size)
