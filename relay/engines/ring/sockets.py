"""System calls on bare descriptors, which the ring engine makes directly and not through the ring.

The engine has no socket object per connection. None of these calls waits; the sockets themselves are in blocking mode,
since O_NONBLOCK would make the ring answer EAGAIN instead of waiting.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence

from relay.address import Address
from relay.engines.options import Option
from relay.engines.ring import abi

# PyDLL keeps the interpreter lock: releasing and taking it costs more than these calls last. use_errno: see `uring`.
_libc = ctypes.PyDLL(None, use_errno=True)
_setsockopt, _getsockopt = _libc.setsockopt, _libc.getsockopt
_getsockname, _getpeername = _libc.getsockname, _libc.getpeername
_send, _recv, _shutdown = _libc.send, _libc.recv, _libc.shutdown
_send.restype = _recv.restype = ctypes.c_ssize_t

_STREAM, _TCP = int(socket.SOCK_STREAM), int(socket.IPPROTO_TCP)
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: choose the port at connect, when the whole 4-tuple is known

_SOCKADDR_SIZE = 28  # struct sockaddr_in6
_name = ctypes.create_string_buffer(_SOCKADDR_SIZE)
_name_pointer = ctypes.c_void_p(ctypes.addressof(_name))
_name_size = ctypes.c_int(_SOCKADDR_SIZE)
_name_size_pointer = ctypes.byref(_name_size)
_int = ctypes.c_int()
_int_pointer = ctypes.byref(_int)
_int_size_pointer = ctypes.byref(ctypes.c_int(4))
_in = struct.Struct("!HH4s").unpack_from
_in6 = struct.Struct("!HHI16sI").unpack_from

TCP_CLOSE = 7  # linux/tcp_states.h
SEND_FLAGS = abi.MSG_DONTWAIT | abi.MSG_NOSIGNAL


def open_stream(target: Sockaddr, source: str, options: Sequence[Option]) -> int:
    """The descriptor of a new TCP socket for a dial, options set and source bound. Raises OSError."""
    # SocketType is the C type under socket.socket; it costs less than two calls through ctypes.
    sock = socket.SocketType(target.family, _STREAM, _TCP)
    try:
        for level, option, value in options:
            sock.setsockopt(level, option, value)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
    except BaseException:
        sock.close()
        raise
    return sock.detach()


class Options:
    """Socket options in the kernel's format, prepared once for many sockets."""

    __slots__ = ("_prepared",)

    def __init__(self, options: Sequence[Option]) -> None:
        self._prepared = [
            (int(level), int(option), ctypes.byref(ctypes.c_int(value))) for level, option, value in options
        ]

    def set(self, fd: int) -> None:
        """Set all options on a socket. Raises OSError."""
        for level, option, pointer in self._prepared:
            if _setsockopt(fd, level, option, pointer, 4) < 0:
                raise _error()


def pending_error(fd: int) -> int:
    """The errno that a connection has ended with, 0 for none; reading it clears it (SO_ERROR, socket(7)).

    An error that TCP survives counts as none: SO_ERROR also reports an ICMP "unreachable" (sk_err_soft), after which
    TCP retransmits.
    """
    if _getsockopt(fd, socket.SOL_SOCKET, socket.SO_ERROR, _int_pointer, _int_size_pointer) < 0:
        return ctypes.get_errno()
    number = _int.value
    return number if number and is_closed(fd) else 0


def is_closed(fd: int) -> bool:
    """Whether the connection is closed, however it ended: TCP_INFO's state, tcp(7)."""
    if _getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _int_pointer, _int_size_pointer) < 0:
        return True
    return _int.value & 0xFF == TCP_CLOSE  # struct tcp_info begins with its state, one byte


# A client's first bytes are received here and copied: a new buffer would have to be zeroed each time.
_scratch = bytearray(1 << 15)
_scratch_view = memoryview(_scratch)
_scratch_address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(_scratch)))


def send(fd: int, data: bytes) -> int:
    """Send as much as the kernel takes now; returns the bytes taken, which may be 0. Raises OSError."""
    size: int = _send(fd, data, len(data), SEND_FLAGS)
    return size if size >= 0 else _raise_unless_again()


def send_from(fd: int, address: ctypes.c_void_p, size: int) -> int:
    """Send from memory at an address, as `send` does. Raises OSError."""
    sent: int = _send(fd, address, size, SEND_FLAGS)
    return sent if sent >= 0 else _raise_unless_again()


def receive(fd: int, address: ctypes.c_void_p, size: int, flags: int = 0) -> int | None:
    """Receive into memory at an address; 0 at the end of the stream, None if nothing is there now. Raises OSError."""
    received: int = _recv(fd, address, size, flags | abi.MSG_DONTWAIT)
    if received < 0:
        _raise_unless_again()
        return None
    return received


def receive_bytes(fd: int, size: int) -> bytes | None:
    """Receive up to `size` bytes; b"" at the end of the stream, None if nothing is there now. Raises OSError."""
    received: int = _recv(fd, _scratch_address, min(size, len(_scratch)), abi.MSG_DONTWAIT)
    if received < 0:
        _raise_unless_again()
        return None
    return bytes(_scratch_view[:received])


def send_fin(fd: int) -> None:
    """Send FIN: shutdown(2) of the sending direction. Raises OSError."""
    if _shutdown(fd, int(socket.SHUT_WR)) < 0:
        raise _error()


def local_address(fd: int) -> Address | None:
    """The socket's local address; None if it has none any more."""
    _name_size.value = _SOCKADDR_SIZE
    return _read_name() if _getsockname(fd, _name_pointer, _name_size_pointer) == 0 else None


def peer_address(fd: int) -> Address | None:
    """The address of the socket's peer; None if the connection is closed already."""
    _name_size.value = _SOCKADDR_SIZE
    return _read_name() if _getpeername(fd, _name_pointer, _name_size_pointer) == 0 else None


def _read_name() -> Address:
    if _name_size.value == 16:
        _, port, host = _in(_name)
        return socket.inet_ntoa(host), port
    _, port, flow, host, scope = _in6(_name)
    # The scope is in the machine's own byte order, unlike the rest.
    return socket.inet_ntop(socket.AF_INET6, host), port, flow, socket.ntohl(scope)


class Sockaddr:
    """A struct sockaddr in memory of its own."""

    __slots__ = ("_buffer", "address", "family", "size")

    def __init__(self, packed: bytes) -> None:
        (self.family,) = struct.unpack_from("=H", packed)
        self._buffer = ctypes.create_string_buffer(packed, len(packed))
        self.address = ctypes.addressof(self._buffer)
        self.size = len(packed)


def sockaddr(address: Address) -> Sockaddr:
    """A literal address as a struct sockaddr. Raises OSError if it is not literal."""
    host, port = address[0], address[1]
    if ":" not in host:
        return Sockaddr(struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host)))
    name, _, zone = host.partition("%")
    flow, scope = (address[2], address[3]) if len(address) == 4 else (0, 0)
    if zone:
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    packed = struct.pack("!HI16s", port, flow, socket.inet_pton(socket.AF_INET6, name)) + struct.pack("=I", scope)
    return Sockaddr(struct.pack("=H", socket.AF_INET6) + packed)


# connect(2) to AF_UNSPEC dissolves an association; on a connected TCP socket it sends RST (tcp_disconnect).
NOWHERE = Sockaddr(struct.pack("=H14x", abi.AF_UNSPEC))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _raise_unless_again() -> int:
    if ctypes.get_errno() != errno.EAGAIN:
        raise _error()
    return 0
