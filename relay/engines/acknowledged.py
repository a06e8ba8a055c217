"""What the kernel knows of a connection's two ends: whether the far one has everything, and whether it had finished."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import termios

# struct tcp_info, linux/tcp.h: bytes_received, since Linux 4.1.
_INFO = struct.Struct("=128xQ")
_buffer = ctypes.create_string_buffer(_INFO.size)
_pointer = ctypes.c_void_p(ctypes.addressof(_buffer))
# PyDLL keeps the interpreter lock: giving it up costs more than the call.
_getsockopt = ctypes.PyDLL(None).getsockopt


def acknowledged(fd: int) -> bool:
    """Nothing is on its way any more on this TCP socket, FIN included (tcp(7): SIOCOUTQ, which is TIOCOUTQ)."""
    return not _size(fd, termios.TIOCOUTQ)


def fin_received(fd: int, received: int) -> bool:
    """The kernel has received the far end's FIN, though it may lie behind bytes that were not read yet.

    `received`: bytes that were read from the socket so far. It can be asked after a reset as well, when TCP's state no
    longer tells: the FIN counts as a byte in tcp_info.bytes_received (tcp_rcv_nxt_update), and not in SIOCINQ. So
    does a byte of urgent data, which recv(2) does not return: one that sent a single such byte is taken to have ended.
    """
    size = ctypes.c_int(_INFO.size)
    failed = _getsockopt(fd, int(socket.IPPROTO_TCP), socket.TCP_INFO, _pointer, ctypes.byref(size))
    if failed or size.value < _INFO.size:
        return False
    (total,) = _INFO.unpack(_buffer)
    return bool(total == received + _size(fd, termios.FIONREAD) + 1)


def _size(fd: int, request: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(size)
