"""TLS clients as people have them talk to the server itself: its certificate, its name, their protocol versions."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.clients import connect, drain, receive, until
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.tls import NAME, Tls
from tests.support.upstreams import Upstream

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
SIZE = 20_000_000


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def http(sock: socket.socket) -> None:
    """One request and its answer: GET gives SIZE bytes, PUT says how many came."""
    head = until(sock, b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    body = receive(sock, int(length[1])) if length else b""
    answer = b"x" * SIZE if head.startswith(b"GET") else f"{len(body)}".encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
    sock.shutdown(socket.SHUT_WR)
    drain(sock)


def line_back(sock: socket.socket) -> None:
    """Sends one line back, in reverse, and says that this was all."""
    assert isinstance(sock, ssl.SSLSocket)
    sock.sendall(until(sock, b"\n").strip()[::-1] + b"\n")
    sock.unwrap()


def curl(relay: Relay, tls: Tls, *arguments: str, name: str = NAME) -> subprocess.CompletedProcess[bytes]:
    host, port = relay.address()
    line = ["curl", "--silent", "--show-error", "--noproxy", "*", "--http1.1", "--cacert", str(tls.authority)]
    line += ["--resolve", f"{name}:{port}:{host}", *arguments, f"https://{name}:{port}/"]
    return subprocess.run(line, capture_output=True, timeout=30)


@needs_curl
def test_curl_downloads_and_uploads_with_the_servers_name_verified(tls: Tls, tmp_path: Path, start: Start) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"y" * SIZE)
    with Upstream(http, tls=tls.server) as server:
        relay = start(settings(listener(server.address)))
        down = curl(relay, tls)
        assert (down.returncode, down.stderr, len(down.stdout)) == (0, b"", SIZE)
        up = curl(relay, tls, "--upload-file", str(body), "--header", "Expect:")
        assert (up.returncode, up.stderr, up.stdout) == (0, b"", str(SIZE).encode())
        status = relay.wait_outcomes({"ok": 2})
    assert tls.names == [NAME, NAME]
    assert status["bytes"]["up"] > SIZE
    assert status["bytes"]["down"] > SIZE


@needs_curl
def test_curl_notices_a_wrong_name_for_the_certificate_is_the_servers(tls: Tls, start: Start) -> None:
    with Upstream(http, tls=tls.server) as server:
        relay = start(settings(listener(server.address)))
        result = curl(relay, tls, name="other.example")
    assert result.returncode == 60  # CURLE_PEER_FAILED_VERIFICATION
    assert tls.names == ["other.example"]


@needs_openssl
@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_openssl_s_client(tls: Tls, start: Start, option: str, version: str) -> None:
    with Upstream(line_back, tls=tls.server) as server:
        relay = start(settings(listener(server.address)))
        host, port = relay.address()
        line = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", NAME, "-verify_hostname", NAME]
        line += ["-CAfile", str(tls.authority), "-verify_return_error", "-brief", option]
        result = subprocess.run([*line, "-ign_eof"], input=b"hello\n", capture_output=True, timeout=30)
        assert result.returncode == 0, result
        assert b"olleh\n" in result.stdout
        assert f"Protocol version: {version}".encode() in result.stderr
        assert b"Verification: OK" in result.stderr
        relay.wait_status(lambda status: status["connections"]["active"] == 0)
    assert tls.names == [NAME]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_python_client_with_close_notify(tls: Tls, start: Start, version: ssl.TLSVersion) -> None:
    def echo_until_notified(sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        while data := sock.recv(1 << 16):
            sock.sendall(data)
        sock.unwrap()

    with Upstream(echo_until_notified, tls=tls.server) as server:
        relay = start(settings(listener(server.address)))
        with tls.client(version).wrap_socket(connect(relay.address()), server_hostname=NAME) as client:
            assert client.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
            for size in (1, 1000, 100_000):
                client.sendall(b"z" * size)
                assert receive(client, size) == b"z" * size
            client.unwrap().close()
        relay.wait_outcomes({"ok": 1})


def test_python_client_does_not_take_another_name(tls: Tls, start: Start) -> None:
    with Upstream(line_back, tls=tls.server) as server:
        relay = start(settings(listener(server.address)))
        sock = connect(relay.address())
        with sock, pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            tls.client().wrap_socket(sock, server_hostname="elsewhere.example")
