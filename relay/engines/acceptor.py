"""Accept connections from an engine's listening sockets, pausing while the machine is out of descriptors or memory.

The engine calls accept(2) itself and never lets the kernel accept ahead (io_uring's multishot accept): a connection
taken from the accept queue before the engine handles it would be reset if the worker hangs or is killed. In the queue
it waits for the worker's successor.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from relay.address import Address
from relay.engines.contract import Accepted, Action, Handler, Refuse
from relay.engines.options import BACKLOG

# accept(2) errors that mean the machine is out of descriptors or memory: the connection stays in the queue, and
# accepting again at once would spin. (Other errors concern the one connection that died in the queue.)
ACCEPT_CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# A socket filter, linux/filter.h: classic BPF, run on each segment for the listener, from its TCP header on. It drops
# segments with SYN and without ACK: new handshakes get no answer, and everything else passes.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

_SYN, _SYN_ACK = 0x02, 0x12

_FILTER = (
    (0x30, 0, 0, 13),  # BPF_LD | BPF_B | BPF_ABS: the flags
    (0x54, 0, 0, _SYN_ACK),  # BPF_ALU | BPF_AND
    (0x15, 0, 1, _SYN),  # BPF_JMP | BPF_JEQ: the next instruction if equal, else the one after it
    (0x06, 0, 0, 0),  # BPF_RET: drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # BPF_RET: keep all of it
)

logger = logging.getLogger("relay.engine")

# Seconds between the last answered SYN and the close of a listener. Closing resets every handshake that is complete and
# not accepted, so the third segment of a handshake needs time to arrive, even from far away.
LINGER = 1.0
ACCEPTS = 64  # connections accepted from one listener before other sockets get their turn

Begin = Callable[[int, int, Handler, Action], None]


class _Listener(NamedTuple):
    """A listening socket, with what `Acceptor.accept` needs at hand."""

    accept: Callable[[], tuple[int, Address]]
    family: int
    accepted: Accepted
    sock: socket.socket
    shared: bool  # other processes accept from the same queue


class Acceptor:
    """The listening sockets of one engine.

    Callbacks: `watch(fd)` begins to wait for a listener's descriptor; `unwatch(fd)` ends that, and leaves no reference
    to the socket, so that closing the descriptor closes it. `begin` takes over each accepted connection with its
    descriptor, address family, handler and first action; `refuse(fd)` closes an accepted descriptor with RST.
    """

    def __init__(
        self,
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        begin: Begin,
        refuse: Callable[[int], None],
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._begin = begin
        self._refuse = refuse
        self._listeners: dict[int, _Listener] = {}
        self._paused: set[int] = set()
        self._closing: dict[int, float] = {}  # listeners that accept no new handshakes: monotonic seconds of the close
        self.pauses = 0

    def __contains__(self, fd: int) -> bool:
        return fd in self._listeners

    def waits(self, fd: int) -> bool:
        """True if the listener is open and not paused."""
        return fd in self._listeners and fd not in self._paused

    def add(self, sock: socket.socket, accepted: Accepted, shared: bool) -> None:
        """Accept on a listening socket from now on; `shared`: other processes accept from its queue as well.

        It may be a new descriptor of a socket that is closing after `unlisten`: that is undone.
        """
        sock.setblocking(False)
        if not shared:
            for fd in [fd for fd in self._closing if os.path.sameopenfile(fd, sock.fileno())]:
                self._close_listener(fd, self._listeners[fd])
            answer_again(sock)
        # `_accept` is what socket.accept() itself calls: it returns the descriptor without making a socket.socket,
        # which costs more than the system call. (The descriptor is in blocking mode: Linux does not inherit
        # O_NONBLOCK.)
        accept: Callable[[], tuple[int, Address]] = sock._accept  # type: ignore[attr-defined]  # not in typeshed
        self._listeners[sock.fileno()] = _Listener(accept, int(sock.family), accepted, sock, shared)
        self._watch(sock.fileno())

    def accept(self, fd: int) -> int:
        """Accept queued connections of a listener, up to ACCEPTS; returns how many left the queue."""
        accept, family, accepted, _, _ = self._listeners[fd]
        for count in range(ACCEPTS):
            try:
                client, address = accept()
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in ACCEPT_CAPACITY_ERRNOS:
                    self._pause(fd, error)
                    return count
                continue  # the connection died in the queue, accept(2): ECONNABORTED, EPROTO, network errors
            try:
                handler, action = accepted(address)
            except Exception:
                logger.exception("a connection could not be set up")
                self._refuse(client)
                continue
            if type(action) is Refuse:
                self._refuse(client)
                continue
            self._begin(client, family, handler, action)
        return ACCEPTS

    def resume(self) -> None:
        """Try the paused listeners again."""
        paused, self._paused = self._paused, set()
        for fd in paused:
            self._watch(fd)

    def unlisten(self, sock: socket.socket) -> None:
        """Stop accepting new handshakes on a listener, and close it after LINGER; ignores any other socket."""
        fd = sock.fileno()
        listener = self._listeners.get(fd)
        if listener is not None and listener.sock is sock:
            self._unlisten(fd, listener)

    def unlisten_all(self) -> None:
        """`unlisten` every listening socket."""
        for fd, listener in list(self._listeners.items()):
            self._unlisten(fd, listener)

    def tick(self, now: float) -> None:
        """Close the listeners whose LINGER is over."""
        for fd in [fd for fd, close_at in self._closing.items() if close_at <= now]:
            self._drain_and_close(fd, self._listeners[fd])

    def close(self) -> None:
        """Close every listening socket at once."""
        for fd, listener in list(self._listeners.items()):
            self._drain_and_close(fd, listener)

    def _unlisten(self, fd: int, listener: _Listener) -> None:
        if fd in self._closing:
            return
        if not listener.shared and answer_no_more(listener.sock):
            self._closing[fd] = monotonic() + LINGER
        else:
            self._drain_and_close(fd, listener)

    def _drain_and_close(self, fd: int, listener: _Listener) -> None:
        """Accept what is queued, unless the queue is shared with other processes; then close the socket."""
        self._stop_watching(fd)
        if not listener.shared:
            # The shortest backlog possible, so that fewer clients connect between the last accept and the close.
            with contextlib.suppress(OSError):
                listener.sock.listen(0)
            while self.accept(fd) == ACCEPTS:
                pass
        self._close_listener(fd, listener)

    def _stop_watching(self, fd: int) -> None:
        if fd not in self._paused:
            self._paused.add(fd)  # so that it is not unwatched twice
            self._unwatch(fd)

    def _close_listener(self, fd: int, listener: _Listener) -> None:
        """Close this descriptor of a listening socket; others of the same socket stay open."""
        self._stop_watching(fd)
        del self._listeners[fd]
        self._closing.pop(fd, None)
        self._paused.discard(fd)
        listener.sock.close()

    def _pause(self, fd: int, error: OSError) -> None:
        """Pause a listener until `resume`, instead of spinning while the machine is out of descriptors or memory."""
        if fd not in self._paused:
            self._paused.add(fd)
            self._unwatch(fd)
        self.pauses += 1
        if self.pauses & (self.pauses - 1) == 0:  # 1, 2, 4, 8, …: a long shortage does not flood the log
            logger.warning("accept paused: %s (pause %d)", os.strerror(error.errno or 0), self.pauses)


def answer_no_more(sock: socket.socket) -> bool:
    """Drop new SYNs to a listening socket, on every copy of it; handshakes already begun can still complete.

    (Accepted sockets inherit the filter, which drops nothing that belongs to a connection.) Returns False if the kernel
    refuses the filter; nothing has changed then.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(buffer)))
    except OSError:
        return False
    return True


def answer_again(sock: socket.socket) -> None:
    """Answer SYNs to a listening socket again, and restore its full backlog: the opposite of `answer_no_more`."""
    with contextlib.suppress(OSError):  # ENOENT: there was no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    sock.listen(BACKLOG)
