"""How an engine takes connections from its listening sockets, and what it does when the machine runs short.

accept(2) is called by the engine itself, never left to the kernel to do ahead: a connection that was taken from the
queue before anybody knew of it would be lost with a worker that hangs or is killed, and its client reset. In the queue
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

# accept(2) errors that mean the machine is short of something: the connection stays in the queue, and asking again at
# once would spin. (Other errors concern the one connection that died in the queue.)
ACCEPT_CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# A socket filter, linux/filter.h: classic BPF, run on each segment for the listener from its TCP header on. Those that
# only have SYN of SYN and ACK are dropped: whoever begins to connect is not answered, and nobody else is disturbed.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

_SYN, _SYN_ACK = 0x02, 0x12

_FILTER = (
    (0x30, 0, 0, 13),  # BPF_LD | BPF_B | BPF_ABS: the flags
    (0x54, 0, 0, _SYN_ACK),  # BPF_ALU | BPF_AND
    (0x15, 0, 1, _SYN),  # BPF_JMP | BPF_JEQ: the next one if equal, else the one after it
    (0x06, 0, 0, 0),  # BPF_RET: nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # BPF_RET: all of it
)

logger = logging.getLogger("relay.engine")

# Seconds between the last answer to a SYN and the close of a listener, which resets who is connected by then and not
# accepted: for the third segment of a handshake to come from far away.
LINGER = 1.0
ACCEPTS = 64  # connections taken from one listener before the others get their turn

Begin = Callable[[int, int, Handler, Action], None]


class _Listener(NamedTuple):
    """A listening socket, and what `accept` needs of it."""

    accept: Callable[[], tuple[int, Address]]
    family: int
    accepted: Accepted
    sock: socket.socket
    shared: bool  # with other processes, which accept from the same queue


class Acceptor:
    """The listening sockets of one engine.

    `watch` and `unwatch` get the descriptor of a listener that is to be waited for, or not any more (nothing refers to
    it then, and closing it ends it); `begin` the descriptor and family of each connection that was not refused,
    `refuse` the descriptor of each that was.
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
        self._leaving: dict[int, float] = {}  # monotonic seconds: when to close it
        self.pauses = 0

    def __contains__(self, fd: int) -> bool:
        return fd in self._listeners

    def waits(self, fd: int) -> bool:
        """Whether that listener is there and not paused."""
        return fd in self._listeners and fd not in self._paused

    def add(self, sock: socket.socket, accepted: Accepted, shared: bool) -> None:
        """Accept on a listening socket from now on; `shared`: other processes accept from its queue as well.

        It may be one that is being left, come back with another descriptor.
        """
        sock.setblocking(False)
        if not shared:
            for fd in [fd for fd in self._leaving if os.path.sameopenfile(fd, sock.fileno())]:
                self._forget(fd, self._listeners[fd])
            answer_again(sock)
        # `_accept` is what socket.accept() itself calls: it gives the descriptor without making a socket.socket, which
        # costs more than the system call. (The descriptor is in blocking mode: Linux does not inherit O_NONBLOCK.)
        accept: Callable[[], tuple[int, Address]] = sock._accept  # type: ignore[attr-defined]  # nor in typeshed
        self._listeners[sock.fileno()] = _Listener(accept, int(sock.family), accepted, sock, shared)
        self._watch(sock.fileno())

    def accept(self, fd: int) -> int:
        """Accept what is queued there, at most ACCEPTS; returns how many those were."""
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

    def leave(self, sock: socket.socket) -> None:
        """Let nobody new in there, and close the socket soon; nothing happens if it is none of these listeners."""
        fd = sock.fileno()
        listener = self._listeners.get(fd)
        if listener is not None and listener.sock is sock:
            self._leave(fd, listener)

    def leave_all(self) -> None:
        """Do so for every listening socket."""
        for fd, listener in list(self._listeners.items()):
            self._leave(fd, listener)

    def tick(self, now: float) -> None:
        """Close those whose time has come."""
        for fd in [fd for fd, closing in self._leaving.items() if closing <= now]:
            self._remove(fd, self._listeners[fd])

    def close(self) -> None:
        """Close every listening socket at once."""
        for fd, listener in list(self._listeners.items()):
            self._remove(fd, listener)

    def _leave(self, fd: int, listener: _Listener) -> None:
        if fd in self._leaving:
            return
        if not listener.shared and answer_no_more(listener.sock):
            self._leaving[fd] = monotonic() + LINGER
        else:
            self._remove(fd, listener)

    def _remove(self, fd: int, listener: _Listener) -> None:
        """Accept what is queued, unless the queue is not ours alone; then close the socket."""
        self._unwait(fd)
        if not listener.shared:
            # A queue as short as it can be: whoever still comes is less likely to get in.
            with contextlib.suppress(OSError):
                listener.sock.listen(0)
            while self.accept(fd) == ACCEPTS:
                pass
        self._forget(fd, listener)

    def _unwait(self, fd: int) -> None:
        if fd not in self._paused:
            self._paused.add(fd)  # it is not waited for again
            self._unwatch(fd)

    def _forget(self, fd: int, listener: _Listener) -> None:
        """Close the socket, as far as this descriptor goes."""
        self._unwait(fd)
        del self._listeners[fd]
        self._leaving.pop(fd, None)
        self._paused.discard(fd)
        listener.sock.close()

    def _pause(self, fd: int, error: OSError) -> None:
        """The machine is out of descriptors or memory: leave the queue alone for a while, instead of spinning."""
        if fd not in self._paused:
            self._paused.add(fd)
            self._unwatch(fd)
        self.pauses += 1
        if self.pauses & (self.pauses - 1) == 0:  # 1, 2, 4, 8, …: a long shortage is told of, the log is not flooded
            logger.warning("accept paused: %s (pause %d)", os.strerror(error.errno or 0), self.pauses)


def answer_no_more(sock: socket.socket) -> bool:
    """Whoever begins to connect there from now on is not answered, whoever has begun can still come in.

    That holds for every copy of the listening socket. (The sockets that are accepted inherit the filter, which drops
    nothing that belongs to a connection.) False: the kernel does not do it, and all is as before.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(buffer)))
    except OSError:
        return False
    return True


def answer_again(sock: socket.socket) -> None:
    """Whoever begins to connect there is answered again, and has a queue of full length to wait in."""
    with contextlib.suppress(OSError):  # ENOENT: there was no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    sock.listen(BACKLOG)
