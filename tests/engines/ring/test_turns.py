"""Turn by turn: what the kernel does within one entry of the ring, and in which order it reports it.

The engine's loop stands still while a test takes the turns itself, and has bytes come between them. Sends have to fall
short: the upstream's socket has room for a few kilobytes, which are used up a little more from one attempt to the next.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from relay.engines.ring.engine import RingEngine
from relay.engines.ring.pump import BUFFER_SIZE, Pump
from relay.engines.ring.records import Link, Side
from tests.engines.lab import Couple, Lab
from tests.engines.peers import pattern, receive
from tests.engines.ring.rings import ring_kind

STEP = 300  # bytes
MOST = 30_000  # more than there is ever room for
TURNS = 4  # in which whatever was under way is over, and the buffers are back


class Stage:
    """A connection `other`, and one after the other with an upstream that has little room."""

    def __init__(self, buffers: int) -> None:
        self.lab = Lab(ring_kind(buffers=buffers))
        self._engine = self.lab.start()
        self._line = self.lab.line(self._engine)
        self.other = self._line.open()

    def attempts(self, act: Callable[[Couple, bytes], None], size: int) -> int:
        """Have `act` send so many bytes and take the turns, with ever less room; returns how often there was any.

        All that was sent must come, in order.
        """
        for count, before in enumerate(range(0, MOST, STEP)):
            couple = self._narrow()
            data = pattern(before, before + size)
            if not self._engine.call(self._fill, couple, data[:before]):
                return count
            self._engine.call(act, couple, data[before:])
            assert receive(self.other.upstream, 2 * BUFFER_SIZE) == bytes(2 * BUFFER_SIZE)
            assert receive(couple.upstream, len(data)) == data
            couple.client.close()
            couple.upstream.close()
            self._engine.ended(couple.handler)
        raise AssertionError("there is always room")

    def turn(self, count: int = 1) -> None:
        """In the engine's thread."""
        assert isinstance(self._engine.engine, RingEngine)
        for _ in range(count):
            self._engine.engine._reactor.turn()

    def refuse(self, entries: int) -> None:
        """In the engine's thread: the kernel has no memory for submissions, so often, and takes none of them."""
        assert isinstance(self._engine.engine, RingEngine)
        ring = self._engine.engine._reactor.ring
        plain = ring.syscall

        def refuse(*_arguments: object) -> int:
            nonlocal entries
            entries -= 1
            if not entries:
                ring.syscall = plain
            ctypes.set_errno(errno.EAGAIN)
            return -1

        ring.syscall = refuse

    def _narrow(self) -> Couple:
        couple = self._line.open()
        couple.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # as little as the kernel allows
        link = couple.handler.link
        assert isinstance(link, Link)
        assert link.upstream is not None
        with socket.socket(fileno=os.dup(link.upstream.fd)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return couple

    def _fill(self, couple: Couple, data: bytes) -> bool:
        """Whether the kernel takes all of that for the upstream, which does not read it."""
        for at in range(0, len(data), STEP):
            couple.client.sendall(data[at : at + STEP])
            self.turn(TURNS)
        return not self._engine.engine.held


@pytest.fixture
def shorts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The results of the sends that fell short, as the ring reports them."""
    short: list[int] = []
    plain = Pump.sent

    def sent(self: Pump, user_data: int, result: int, side: Side, many: bool) -> None:
        short.append(result)
        plain(self, user_data, result, side, many)

    monkeypatch.setattr(Pump, "sent", sent)
    yield short
    assert short


def test_what_a_new_receive_brings_does_not_overtake_a_send_that_falls_short(shorts: list[int]) -> None:
    """The receive is armed anew, since there was no buffer for the third message, with the send of the first two.

    It polls first (IORING_RECVSEND_POLL_FIRST), and so reports what it brings after that send. Were it tried at
    once, nothing would promise that order, though the kernels at hand keep it (late versions of 6.1, 6.12, 6.18).
    """
    stage = Stage(buffers=4)

    def act(couple: Couple, data: bytes) -> None:
        stage.other.client.sendall(bytes(2 * BUFFER_SIZE))
        stage.turn()  # takes two buffers, which come back at the end of the next turn
        couple.client.sendall(data)
        stage.turn()
        stage.turn()

    assert stage.attempts(act, 3 * BUFFER_SIZE) > 1
    assert shorts
    stage.lab.close()


def test_a_buffer_is_not_free_before_the_result_of_its_send_is_known(shorts: list[int]) -> None:
    """Another connection's receive would fill it, in the very entry in which the send falls short."""
    stage = Stage(buffers=2)

    def act(couple: Couple, data: bytes) -> None:
        couple.client.sendall(data)
        stage.turn()
        stage.other.client.sendall(bytes(2 * BUFFER_SIZE))
        stage.turn()

    assert stage.attempts(act, 2 * BUFFER_SIZE) > 1
    assert shorts
    stage.lab.close()


@pytest.mark.parametrize("entries", [1, 2])
def test_a_buffer_is_not_free_while_its_send_is_not_submitted(shorts: list[int], entries: int) -> None:
    """The kernel refuses an entry (EAGAIN): what it did not take reads its buffers later."""
    stage = Stage(buffers=2)

    def act(couple: Couple, data: bytes) -> None:
        couple.client.sendall(data)
        stage.turn()
        stage.other.client.sendall(bytes(2 * BUFFER_SIZE))
        stage.refuse(entries)
        stage.turn(entries + 1)

    assert stage.attempts(act, 2 * BUFFER_SIZE) > 1
    assert shorts
    stage.lab.close()
