"""The kernel's knowledge of a TCP socket's peer: has it acknowledged everything, has it sent FIN, does it answer."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

# Window probes without an answer that count. One does not: a peer that was probed within the last half second leaves
# the next one unanswered (tcp_invalid_ratelimit).
UNANSWERED_PROBES = 2

# struct tcp_info, linux/tcp.h: probes; unacked; last_data_sent, last_ack_recv (both milliseconds ago); notsent_bytes
# (since Linux 4.6).
_PEER_STATE = struct.Struct("=3xB 20x I 16x I 8x I 84x I")
_RECEIVED = struct.Struct("=128xQ")  # bytes_received, since Linux 4.1
_buffer = ctypes.create_string_buffer(max(_PEER_STATE.size, _RECEIVED.size))
_pointer = ctypes.c_void_p(ctypes.addressof(_buffer))
# PyDLL keeps the interpreter lock: releasing it costs more than the call.
_getsockopt = ctypes.PyDLL(None).getsockopt


class PeerState(NamedTuple):
    """Whether a peer has data to acknowledge, and for how long it has not answered."""

    pending: bool  # it has not acknowledged everything, or its window has no room for the rest
    probed: bool  # since its last answer a segment was sent to it, or UNANSWERED_PROBES probes of its closed window
    silent: float  # seconds since its last answer


NOTHING_PENDING = PeerState(False, False, 0.0)


def peer_state(fd: int) -> PeerState:
    """Read the state of a TCP socket's peer; NOTHING_PENDING if the descriptor is not a TCP socket."""
    if not _read_tcp_info(fd, _PEER_STATE.size):
        return NOTHING_PENDING
    probes, unacked, sent, answered, not_sent = _PEER_STATE.unpack_from(_buffer)
    probed = sent < answered if unacked else probes >= UNANSWERED_PROBES
    return PeerState(bool(unacked or not_sent), probed, answered / 1000)


def acknowledged(fd: int) -> bool:
    """True if the peer has acknowledged everything sent, FIN included (tcp(7): SIOCOUTQ, which is TIOCOUTQ)."""
    return not _queue_size(fd, termios.TIOCOUTQ)


def fin_received(fd: int, received: int) -> bool:
    """True if the kernel has received the peer's FIN, even behind bytes that were not read yet.

    `received`: bytes read from the socket so far. The result is right after a reset too, when the TCP state no longer
    shows it: the FIN counts as a byte in tcp_info.bytes_received (tcp_rcv_nxt_update), but not in SIOCINQ. So does a
    byte of urgent data, which recv(2) does not return: a peer that sent a single such byte counts as having sent FIN.
    """
    if not _read_tcp_info(fd, _RECEIVED.size):
        return False
    (total,) = _RECEIVED.unpack_from(_buffer)
    return bool(total == received + _queue_size(fd, termios.FIONREAD) + 1)


def _read_tcp_info(fd: int, wanted: int) -> bool:
    """Read TCP_INFO into the buffer; False if the kernel returns fewer than `wanted` bytes."""
    size = ctypes.c_int(wanted)
    failed = _getsockopt(fd, int(socket.IPPROTO_TCP), socket.TCP_INFO, _pointer, ctypes.byref(size))
    return not failed and size.value >= wanted


def _queue_size(fd: int, request: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(size)
