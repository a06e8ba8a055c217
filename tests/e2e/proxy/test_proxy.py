"""The PROXY protocol with real peers: HAProxy before and behind the relay, curl, and clients that say nonsense."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.core import proxy_header
from tests.support.clients import connect, drain, exchange, receive, refused, was_reset
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import free_port, launched
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, http_hello

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
BEHIND = ("203.0.113.7", 4711)
SERVED = ("203.0.113.200", 8883)
V2 = proxy_header.build(2, BEHIND, SERVED)
REQUIRE, ACCEPT = 'proxy_protocol = "require"', 'proxy_protocol = "accept"'


def told(sock: socket.socket) -> None:
    """Sends back all that has come, header included, and the end."""
    sock.sendall(drain(sock))


@contextlib.contextmanager
def haproxy(directory: Path, bind: str, server: str, port: int) -> Iterator[None]:
    """One HAProxy between `bind` and `server`."""
    config = directory / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        f"listen it\n bind {bind}\n server it {server}\n"
    )
    process = subprocess.Popen(launched([shutil.which("haproxy") or "haproxy", "-f", str(config)]))
    try:
        wait_until(lambda: _answers(port), what="haproxy listening")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def say(relay: Relay, data: bytes) -> bytes:
    """What comes back, FIN included."""
    with connect(relay.address()) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return drain(client)


@needs_haproxy
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"])
def test_haproxy_in_front(echo: Echo, start: Start, tmp_path: Path, version: str) -> None:
    relay = start(settings(listener(echo.address, more=REQUIRE), workers=2, tables='[access]\nallow = ["127.0.0.9"]\n'))
    port = free_port()
    target = "{}:{}".format(*relay.address())
    with haproxy(tmp_path, f"127.0.0.1:{port}", f"{target} {version}", port):
        with connect(("127.0.0.1", port), "127.0.0.9") as client:
            assert exchange(client) == b"ping"
            name = "{}:{}".format(*client.getsockname())
        with connect(("127.0.0.1", port), "127.0.0.8") as client:
            client.sendall(b"ping")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(4) == b""
        relay.wait_status(lambda status: status["connections"]["outcomes"]["refused_access"] >= 1)
        wait_until(lambda: [line for line in relay.events("connection") if line["client"] == name], what="its line")
    (line,) = [line for line in relay.events("connection") if line["client"] == name]
    assert line["outcome"] == "ok", "HAProxy's own address is not on the list, its client's is"


@needs_haproxy
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind(start: Start, tmp_path: Path, version: str) -> None:
    """It takes the header off, and passes on in a header of its own what it has understood."""
    with Upstream(told) as server:
        port = free_port()
        target = f"{server.address[0]}:{server.address[1]} send-proxy-v2"
        with haproxy(tmp_path, f"127.0.0.1:{port} accept-proxy", target, port):
            more = f'send_proxy_protocol = "{version}"'
            relay = start(settings(listener(("127.0.0.1", port), more=more), workers=2))
            with connect(relay.address(), "127.0.0.9") as client:
                name, served = client.getsockname(), client.getpeername()
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                back = drain(client)
    header = proxy_header.parse(back)
    assert header is not None
    assert back[header.size :] == b"hello"
    assert (header.source, header.destination) == (name, served)


@needs_curl
def test_curl(start: Start) -> None:
    with Upstream(http_hello) as server:
        relay = start(settings(listener(server.address, more=ACCEPT)))
        url = "http://{}:{}/".format(*relay.address())
        for arguments in ([], ["--haproxy-protocol"]):
            line = ["curl", "--silent", "--noproxy", "*", *arguments, url]
            assert subprocess.run(line, capture_output=True, timeout=30).stdout == b"hello"
        relay.wait_outcomes({"ok": 2})


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 203.0.113.7 203.0.113.200 4711 99999\r\n",
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        V2[:12] + b"\x31" + V2[13:],
        V2[:-1],
        b"",
    ],
    ids=["tls", "port", "short", "long", "version", "cut", "nothing"],
)
def test_who_sends_no_proper_header_is_refused(echo: Echo, start: Start, data: bytes) -> None:
    relay = start(settings(listener(echo.address, more=REQUIRE)))
    with connect(relay.address()) as client:
        client.sendall(data)
        with contextlib.suppress(OSError):  # it is reset already
            client.shutdown(socket.SHUT_WR)
        assert was_reset(client)
    gone = not data or data == V2[:-1]  # it ended before its header was complete
    relay.wait_outcomes({"client_hello_abort" if gone else "refused_proxy": 1})
    assert echo.served == 0


def test_a_header_is_honoured_only_where_it_is_asked_for(start: Start) -> None:
    with Upstream(told) as server:
        relay = start(settings(listener(server.address), tables='[access]\nallow = ["127.0.0.1"]\n'))
        assert say(relay, V2 + b"hello") == V2 + b"hello", "to other listeners it is data like any other"
        (line,) = relay.access(1)
        assert line["client"].startswith("127.0.0.1:")


def test_a_header_in_single_bytes_and_the_link_id_of_azure(start: Start) -> None:
    tlv = struct.pack("!BHB", 0xEE, 5, 1) + struct.pack("<I", 305419896)
    size = struct.unpack("!H", V2[14:16])[0] + len(tlv)
    header = V2[:14] + struct.pack("!H", size) + V2[16:] + tlv
    with Upstream(told) as server:
        more = REQUIRE + '\nsend_proxy_protocol = "v2"'
        relay = start(settings(listener(server.address, more=more), workers=2))
        with connect(relay.address()) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(len(header)):
                client.sendall(header[at : at + 1])
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert drain(client) == V2 + b"hello"
        (line,) = relay.access(1)
    assert line["link_id"] == 305419896
    assert line["client"] == "{}:{}".format(*BEHIND)


def test_ipv6_behind_an_ipv4_proxy(start: Start) -> None:
    source, destination = ("2001:db8::7", 4711, 0, 0), ("2001:db8::200", 8883, 0, 0)
    with Upstream(told) as server:
        more = REQUIRE + '\nsend_proxy_protocol = "v1"'
        tables = '[access]\nallow = ["2001:db8::/64"]\n'
        relay = start(settings(listener(server.address, more=more), tables=tables))
        back = say(relay, proxy_header.build(2, source, destination) + b"hello")
        assert back == b"PROXY TCP6 2001:db8::7 2001:db8::200 4711 8883\r\nhello"
        (line,) = relay.access(1)
        assert line["client"] == "[2001:db8::7]:4711"


def test_limits_are_those_of_the_client_behind_the_proxy(echo: Echo, start: Start) -> None:
    tables = "[limits]\nmax_connections_per_source = 1\nconnect_rate_per_source = 0.01\nconnect_burst_per_source = 2\n"
    relay = start(settings(listener(echo.address, more=REQUIRE), workers=2, tables=tables))
    with connect(relay.address()) as first, connect(relay.address()) as other:
        first.sendall(V2 + b"ping")
        assert receive(first, 4) == b"ping"
        with connect(relay.address()) as second:
            second.sendall(V2)
            assert was_reset(second)
        other.sendall(proxy_header.build(1, ("203.0.113.8", 1), SERVED) + b"ping")
        assert receive(other, 4) == b"ping"
    with connect(relay.address()) as third:
        third.sendall(V2)
        assert was_reset(third)
    relay.wait_outcomes({"ok": 2, "refused_source": 1, "refused_source_rate": 1})


def test_who_says_nothing_is_bounded_in_number_and_in_time(echo: Echo, start: Start) -> None:
    tables = "[timeouts]\nclient_hello = 1.0\n[limits]\nmax_connections = 5\n"
    relay = start(settings(listener(echo.address, more=REQUIRE), tables=tables))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(relay.address())) for _ in range(5)]
        relay.wait_active(5)
        assert refused(relay.address())
        for client in silent:
            assert was_reset(client)
    relay.wait_outcomes({"client_hello_timeout": 5, "refused_instance": 1})
    assert echo.served == 0
