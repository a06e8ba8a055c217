"""Socket options: both sides of a connection have those that were asked for, by the kernel's own account."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from relay.engines.contract import TcpOptions
from relay.supervisor.listening import bind_listener
from tests.engines.lab import IPV4, IPV6, NO_TIMEOUTS, Couple, Lab
from tests.engines.peers import address_of
from tests.engines.running import RunningEngine
from tests.engines.script import Script
from tests.support.observe import wait_until

TCP_USER_TIMEOUT = 18  # linux/tcp.h; the name is in `socket` as well, not on every platform that mypy knows


def engine_side_of(peer: socket.socket) -> socket.socket:
    """A duplicate of the engine's socket at the other end of a peer's connection: it is in this process."""
    here, there = peer.getsockname(), peer.getpeername()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if path.readlink().name.startswith("socket:"):
                sock = socket.socket(fileno=os.dup(int(path.name)))
                with contextlib.suppress(OSError):
                    if sock.getsockname() == there and sock.getpeername() == here:
                        return sock
                sock.close()
    raise AssertionError(f"nobody is connected to {here}")


def options_of(peer: socket.socket) -> dict[str, int]:
    with engine_side_of(peer) as sock:
        return {
            "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "idle": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "interval": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            "count": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            "user_timeout": sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT),
        }


def couple_with(lab: Lab, engine: RunningEngine, tcp: TcpOptions, host: str) -> Couple:
    """A connection through a listening socket that has the options, as a worker gets it."""
    server = lab.listening(host)
    sock = bind_listener(host, 0, tcp)
    address = address_of(sock)
    engine.listen(sock, Script(lab.dial(server)))
    client = lab.connected(address)
    return Couple(client, lab.accepted(server), engine.handler_of(client))


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_keepalive_and_nodelay_are_set(lab: Lab, host: str, side: str) -> None:
    tcp = TcpOptions(keepalive_idle=77, keepalive_interval=11, keepalive_count=7, user_timeout=12.5)
    couple = couple_with(lab, lab.start(tcp=tcp), tcp, host)
    peer = couple.client if side == "client" else couple.upstream
    assert options_of(peer)["nodelay"] == 1, "from the first byte on"
    # The kernel's own user timeout would give up slow readers, and overrule the count: see `engines.unresponsive`.
    wanted = {"nodelay": 1, "keepalive": 1, "idle": 77, "interval": 11, "count": 7, "user_timeout": 0}
    # The rest may come up to a second later.
    wait_until(lambda: options_of(peer) == wanted, what=lambda: str(options_of(peer)))


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_zero_leaves_the_default_of_the_kernel(lab: Lab, side: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
        interval = fresh.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
    tcp = TcpOptions(keepalive_idle=0, keepalive_interval=0, keepalive_count=0, user_timeout=0.0)
    couple = couple_with(lab, lab.start(tcp=tcp), tcp, IPV4)
    options = options_of(couple.client if side == "client" else couple.upstream)
    assert options["nodelay"] == 1
    assert options["keepalive"] == 0
    assert options["interval"] == interval
    assert options["user_timeout"] == 0


def test_ipv6_upstream_of_an_ipv4_client_has_them_too(lab: Lab) -> None:
    tcp = TcpOptions(keepalive_idle=99)
    engine = lab.start(tcp=tcp)
    server = lab.listening(IPV6)
    lab.connected(lab.listen(engine, Script(lab.dial(server)), IPV4))
    peer = lab.accepted(server)
    wait_until(lambda: (options_of(peer)["keepalive"], options_of(peer)["idle"]) == (1, 99))
    assert options_of(peer)["nodelay"] == 1


def test_new_options_are_those_of_connections_that_come_later(lab: Lab) -> None:
    engine = lab.start(tcp=TcpOptions(keepalive_idle=66))
    before = lab.couple(engine)
    wait_until(lambda: options_of(before.upstream)["idle"] == 66)
    engine.call(engine.engine.configure, NO_TIMEOUTS, TcpOptions(keepalive_idle=88))
    after = lab.couple(engine)
    wait_until(lambda: options_of(after.upstream)["idle"] == 88)
    assert options_of(after.upstream)["keepalive"] == options_of(after.client)["keepalive"] == 1
    assert options_of(before.upstream)["idle"] == 66
