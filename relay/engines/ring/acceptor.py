"""How the ring engine takes connections from its listening sockets, and what it does when the machine runs short.

One accept is armed for each listening socket and goes on by itself (multishot). It does not tell the client's address:
several connections of one turn would share the memory for it. So the address is asked for, if anybody wants it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from relay.engines.contract import Accepted, Action, Address, Handler, Refuse
from relay.engines.ring import abi, sockets
from relay.engines.ring.abi import IORING_CQE_F_MORE
from relay.engines.ring.reactor import ACCEPT, SLOT_BITS, SLOT_MASK, Reactor
from relay.engines.ring.slots import Slots
from relay.listener import ACCEPT_CAPACITY_ERRNOS

logger = logging.getLogger("relay.engine")

_TAG = ACCEPT << SLOT_BITS
END_TURNS = 100  # turns that the end of an accept may take

Begin = Callable[[int, Handler, Action], None]


@dataclass(slots=True)
class _Listening:
    sock: socket.socket
    accepted: Accepted
    nobody: Address  # stands for a client that was gone before its address could be asked for
    armed: bool = False
    ending: bool = False


class Acceptor:
    """The listening sockets of one engine. `begin` gets the descriptor of each connection that was not refused."""

    def __init__(self, reactor: Reactor, slots: Slots, begin: Begin, *, addresses: bool, multishot: bool) -> None:
        self._reactor = reactor
        self._slots = slots
        self._begin = begin
        self._addresses = addresses
        self._word = abi.IORING_OP_ACCEPT | (abi.IORING_ACCEPT_MULTISHOT if multishot else 0)
        self._listening: dict[int, _Listening] = {}
        self._next = 0
        self.pauses = 0
        reactor.handlers[ACCEPT] = self._accepted

    def add(self, sock: socket.socket, accepted: Accepted) -> None:
        """Accept on a listening socket from now on."""
        sock.setblocking(True)  # O_NONBLOCK would make the ring answer EAGAIN instead of waiting
        nobody: Address = ("::", 0, 0, 0) if sock.family == socket.AF_INET6 else ("0.0.0.0", 0)
        self._listening[self._next] = _Listening(sock, accepted, nobody)
        self._arm(self._next)
        self._next += 1

    def resume(self) -> None:
        """Try the paused listeners again."""
        for index, one in self._listening.items():
            if not one.armed:
                self._arm(index)

    def close(self) -> None:
        """Accept what is queued, then close every listening socket."""
        for index, one in self._listening.items():
            if one.armed and not one.ending:
                one.ending = True
                self._slots.cancel(index | _TAG)
        for _ in range(END_TURNS):
            if not any(one.armed for one in self._listening.values()):
                break
            self._reactor.turn(1, 0.1)
        for one in list(self._listening.values()):
            one.sock.setblocking(False)
            self._take_queued(one)
            one.sock.close()
        self._listening.clear()

    def _take_queued(self, one: _Listening) -> None:
        while True:
            try:
                sock, _ = one.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in ACCEPT_CAPACITY_ERRNOS:
                    self._paused(error.errno or 0)
                    return
                continue
            sock.setblocking(True)
            self._take(one, sock.detach())

    def _arm(self, index: int) -> None:
        one = self._listening[index]
        one.armed = True
        self._reactor.push(
            self._word | one.sock.fileno() << abi.FD, 0, 0, socket.SOCK_CLOEXEC << abi.OP_FLAGS, index | _TAG
        )

    def _accepted(self, user_data: int, result: int, flags: int) -> None:
        one = self._listening[user_data & SLOT_MASK]
        if result >= 0:
            self._take(one, result)
        if not flags & IORING_CQE_F_MORE:
            self._over(user_data & SLOT_MASK, one, -result)

    def _over(self, index: int, one: _Listening, number: int) -> None:
        """An accept has ended, with that errno if it is more than 0."""
        one.armed = False
        if number in ACCEPT_CAPACITY_ERRNOS:
            self._paused(number)  # left alone until `resume`, instead of spinning
        elif not one.ending:
            # All other errors concern the one connection that died in the queue, accept(2).
            self._arm(index)

    def _take(self, one: _Listening, fd: int) -> None:
        address = (sockets.peer_address(fd) if self._addresses else None) or one.nobody
        try:
            handler, action = one.accepted(address)
        except Exception:
            logger.exception("a connection could not be set up")
            self._slots.reset_descriptor(fd)
            return
        if type(action) is Refuse:
            self._slots.reset_descriptor(fd)
            return
        self._begin(fd, handler, action)

    def _paused(self, number: int) -> None:
        """The machine is out of descriptors or memory."""
        self.pauses += 1
        if self.pauses & (self.pauses - 1) == 0:  # 1, 2, 4, 8, …: a long shortage is told of, the log is not flooded
            logger.warning("accept paused: %s (pause %d)", os.strerror(number), self.pauses)
