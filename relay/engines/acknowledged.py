"""Whether the far end's kernel has everything that was sent to it."""

from __future__ import annotations

import fcntl
import struct
import termios


def acknowledged(fd: int) -> bool:
    """Nothing is on its way any more on this TCP socket, FIN included (tcp(7): SIOCOUTQ, which is TIOCOUTQ)."""
    (size,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    return not size
