"""Listeners that let TLS through for certain names only: real clients, slow ones, and what is no TLS at all."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from tests.core.hellos import KEY_SHARE, X25519, by_openssl, extension, hello, records, server_name, tls13, vector
from tests.support.clients import connect, drain, receive, was_reset
from tests.support.harness import Json, Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.tls import NAME, Tls
from tests.support.upstreams import Echo, Upstream, http_hello

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
HANDSHAKE = 22  # type of a TLS record
TIMEOUT = 1.0  # seconds for a hello, where a test waits for it to pass
SNI = f'sni = ["{NAME}", "*.devices.example"]'


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def echo_back(sock: socket.socket) -> None:
    """What comes first, and then the end in good order."""
    assert isinstance(sock, ssl.SSLSocket)
    sock.sendall(sock.recv(1 << 16))
    sock.unwrap()


def gated(start: Start, upstream: tuple[str, int], tables: str = "") -> Relay:
    return start(settings(listener(upstream, more=SNI), workers=2, tables=tables))


def lines(relay: Relay) -> list[Json]:
    """The access log, once every connection has ended."""
    relay.wait_active(0)
    relay.stop()
    return [line for line in map(json.loads, relay.log.read_text().splitlines()) if line["event"] == "connection"]


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        (["-servername", NAME, "-alpn", "mqtt,x-amqp"], True),
        (["-servername", NAME.upper()], True),
        (["-servername", "other.example"], False),
        (["-noservername"], False),
    ],
    ids=["name and protocols", "capitals", "another name", "no name"],
)
def test_openssl(tls: Tls, start: Start, arguments: list[str], served: bool, version: str) -> None:
    with Upstream(echo_back, tls=tls.server) as server:
        relay = gated(start, server.address)
        host, port = relay.address()
        line = ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(tls.authority), "-brief", version]
        result = subprocess.run([*line, *arguments, "-ign_eof"], input=b"hello\n", capture_output=True, timeout=30)
        assert (result.returncode == 0) is served, result
        assert (b"hello\n" in result.stdout) is served
        relay.wait_outcomes({"ok": 1} if served else {"refused_sni": 1})
        (entry,) = lines(relay)
    assert (
        entry["sni"] == {"-noservername": ""}.get(arguments[0], arguments[-1] if len(arguments) == 2 else NAME).lower()
    )
    assert entry["alpn"] == (["mqtt", "x-amqp"] if "-alpn" in arguments else [])
    assert len(tls.names) == served, "the upstream never saw the others"


@needs_curl
def test_curl(tls: Tls, start: Start) -> None:
    with Upstream(http_hello, tls=tls.server) as server:
        relay = gated(start, server.address)
        host, port = relay.address()
        for name, status in ((NAME, 0), ("other.example", 35)):  # CURLE_SSL_CONNECT_ERROR
            line = ["curl", "--silent", "--noproxy", "*", "--http1.1", "--cacert", str(tls.authority)]
            line += ["--resolve", f"{name}:{port}:{host}", f"https://{name}:{port}/"]
            result = subprocess.run(line, capture_output=True, timeout=30)
            assert (result.returncode, result.stdout) == (status, b"" if status else b"hello")
        relay.wait_outcomes({"ok": 1, "refused_sni": 1})


def test_the_bytes_of_a_hello_are_passed_on_untouched(echo: Echo, start: Start) -> None:
    """A post-quantum hello, in small pieces and behind it what the client sends at once."""
    relay = gated(start, echo.address)
    data = records(hello(tls13(((0x11EC, 1216), (0x001D, 32))) + server_name(b"a.devices.example")), [700, 1, 300])
    data += b"\x17\x03\x03\x00\x05early"
    with connect(relay.address()) as client:
        for at in range(0, len(data), 97):
            client.sendall(data[at : at + 97])
        assert receive(client, len(data)) == data
        client.shutdown(socket.SHUT_WR)
        assert drain(client) == b""
    status = relay.wait_outcomes({"ok": 1})
    assert status["bytes"] == {"up": len(data), "down": len(data)}


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "refused_tls"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "refused_tls"),
        (by_openssl("other.example"), "refused_sni"),
        (by_openssl(None), "refused_sni"),
    ],
    ids=["HTTP", "another message", "another name", "no name"],
)
def test_what_is_refused_is_reset_and_never_dialled_for(echo: Echo, start: Start, sent: bytes, outcome: str) -> None:
    relay = gated(start, echo.address)
    with connect(relay.address()) as client:
        client.sendall(sent)
        assert was_reset(client)
    relay.wait_outcomes({outcome: 1})
    relay.wait_active(0)
    assert echo.served == 0


@pytest.mark.parametrize("sent", [b"", by_openssl(NAME)[:60]], ids=["nothing", "a part"])
def test_a_client_that_is_slow_with_its_hello(echo: Echo, start: Start, sent: bytes) -> None:
    relay = gated(start, echo.address, f"[timeouts]\nclient_hello = {TIMEOUT}\n")
    began = time.monotonic()
    with connect(relay.address()) as client:
        client.sendall(sent)
        assert was_reset(client)
    assert time.monotonic() - began >= TIMEOUT
    relay.wait_outcomes({"client_hello_timeout": 1})
    assert echo.served == 0


def test_a_client_that_goes_away_before_its_hello(echo: Echo, start: Start) -> None:
    relay = gated(start, echo.address)
    with connect(relay.address()) as client:
        client.sendall(by_openssl(NAME)[:60])
        client.shutdown(socket.SHUT_WR)
        assert was_reset(client)
    relay.wait_outcomes({"client_hello_abort": 1})


def test_other_listeners_read_nothing(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address, more=SNI), listener(echo.address, name="open")))
    with connect(relay.address("open")) as client:
        client.sendall(b"no TLS at all")
        assert receive(client, 13) == b"no TLS at all"
    relay.wait_outcomes({"ok": 1})


def test_a_name_cannot_break_a_line_of_the_log(echo: Echo, start: Start) -> None:
    relay = gated(start, echo.address)
    name = b'a"\\\r\n{"outcome": "ok"}'
    with connect(relay.address()) as client:
        client.sendall(records(hello(server_name(name))))
        assert was_reset(client)
    relay.wait_outcomes({"refused_sni": 1})
    (entry,) = lines(relay)
    assert entry["sni"] == name.decode().lower()


# The base point of P-256, SEC 2 section 2.4.2: a public key like any other.
POINT = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ecec"
    "bb6406837bf51f5"
)
P256 = 0x0017
SECOND_SHARE = vector(2, P256.to_bytes(2) + vector(2, POINT))


def test_a_second_hello_is_passed_on_unread_whatever_it_names(start: Start, tls: Tls) -> None:
    """What the documentation says of the filter: after a HelloRetryRequest (RFC 8446 section 4.1.4), here because the
    server wants another group, the hello comes again in clear. Nothing but its key share may differ (section 4.1.2),
    and OpenSSL serves the name of the second all the same.
    """
    tls.server.set_ecdh_curve("prime256v1")
    session = bytes(range(32))
    first = records(hello(server_name(NAME.encode()) + tls13(((X25519, 32),)), session))
    share = extension(KEY_SHARE, SECOND_SHARE)
    second = records(
        hello(server_name(b"other.example") + tls13(()).replace(extension(KEY_SHARE, b"\0\0"), share), session)
    )
    with Upstream(lambda _sock: None, tls=tls.server) as upstream:
        relay = gated(start, upstream.address)
        with connect(relay.address()) as client:
            client.sendall(first)
            assert receive(client, 5)[0] == HANDSHAKE, "the request for another one"
            client.sendall(second)
            wait_until(lambda: tls.names == [NAME, "other.example"], what="the server was asked for both names")
        (line,) = lines(relay)
    assert (line["sni"], line["bytes_up"]) == (NAME, len(first) + len(second))
