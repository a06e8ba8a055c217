"""One address has one relay: who gets it, who is refused, and that every socket there has its share."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from relay.engines.contract import TcpOptions
from relay.supervisor.listening import conflicts, open_sockets
from tests.support.programs import ROOT, free_port

ROUNDS = 100
TAKERS = 3


class Taker:
    """Another process that takes ports."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    def say(self, text: str) -> None:
        self._to.write(text + "\n")
        self._to.flush()

    def answer(self) -> int:
        return int(self._from.readline())


@contextmanager
def taker(host: str = "127.0.0.1", workers: int = 2) -> Iterator[Taker]:
    line = [sys.executable, "-m", "tests.supervisor.port_taker", host, str(workers)]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Taker(process)
        process.kill()


@pytest.mark.parametrize(
    ("address", "other", "in_the_way"),
    [
        ("127.0.0.1:443", "127.0.0.1:443", True),
        ("127.0.0.2:443", "127.0.0.1:443", False),
        ("127.0.0.1:443", "127.0.0.1:444", False),
        ("127.0.0.1:443", "0.0.0.0:443", True),
        ("0.0.0.0:443", "127.0.0.1:443", True),
        ("[::1]:443", "0.0.0.0:443", False),
        ("[::1]:443", "[::]:443", True),
        ("127.0.0.1:443", "[::]:443", True),
        ("[2001:db8::1]:443", "[::1]:443", False),
    ],
)
def test_whose_address_is_in_the_way(address: str, other: str, in_the_way: bool) -> None:
    assert conflicts(address, ["192.0.2.1:9", other]) is in_the_way


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_of_those_that_take_a_port_at_the_same_moment_one_gets_it(host: str) -> None:
    with ExitStack() as stack:
        takers = [stack.enter_context(taker(host)) for _ in range(TAKERS)]
        for _ in range(ROUNDS):
            port = free_port()
            for one in takers:
                one.say(str(port))
            got = sorted(one.answer() for one in takers)
            assert got[:-1] == [0] * (TAKERS - 1), "never two"
            assert got[-1] in (0, 2)
            for one in takers:
                one.say("")
            assert [one.answer() for one in takers] == [0] * TAKERS


def test_one_of_them_always_gets_it() -> None:
    """A claim that is refused has not been listening, and so is in nobody's way."""
    with ExitStack() as stack:
        takers = [stack.enter_context(taker()) for _ in range(TAKERS)]
        for _ in range(ROUNDS):
            port = free_port()
            for one in takers:
                one.say(str(port))
            assert sorted(one.answer() for one in takers) == [0] * (TAKERS - 1) + [2]
            for one in takers:
                one.say("")
                one.answer()


def test_every_socket_has_its_share_of_the_connections() -> None:
    """The claim as well, which was there before the others had any group to be in."""
    sockets = open_sockets("127.0.0.1", 0, 4, TcpOptions())
    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        address = sockets[0].getsockname()
        assert {sock.getsockname() for sock in sockets} == {address}
        for _ in range(400):
            stack.enter_context(socket.create_connection(address))
        counts = [accepted(sock) for sock in sockets]
    assert sum(counts) == 400
    assert min(counts) > 50, counts  # 100 each on average, with a standard deviation of 9


def accepted(sock: socket.socket) -> int:
    count = 0
    while select.select([sock], [], [], 0)[0]:
        sock.accept()[0].close()
        count += 1
    return count


def test_what_it_listens_on_itself_is_not_in_its_way() -> None:
    """Leaving an address for another one of the same port, and coming back to one that workers have not left yet."""
    with ExitStack() as stack:
        first = open_sockets("127.0.0.1", 0, 2, TcpOptions())
        port = first[0].getsockname()[1]
        for sock in [*first, *open_sockets("127.0.0.1", port, 2, TcpOptions())]:
            stack.enter_context(sock)
        for sock in open_sockets("0.0.0.0", port, 2, TcpOptions()):
            stack.enter_context(sock)
        with taker() as other:
            other.say(str(port))
            assert other.answer() == 0


@pytest.mark.parametrize("theirs", ["127.0.0.2", "::1"])
def test_another_relays_address_of_the_same_port_is_in_its_way(theirs: str) -> None:
    """Though this one listens on the port already, at another address."""
    ours = "127.0.0.1" if "." in theirs else "::1"
    with ExitStack() as stack:
        other = stack.enter_context(taker(theirs))
        port = free_port()
        other.say(str(port))
        assert other.answer() == 2
        if ours != theirs:
            for sock in open_sockets(ours, port, 2, TcpOptions()):
                stack.enter_context(sock)
        for host in (theirs, "0.0.0.0" if "." in theirs else "::"):
            with pytest.raises(OSError, match="in use") as raised:
                open_sockets(host, port, 2, TcpOptions())
            assert raised.value.errno == errno.EADDRINUSE
