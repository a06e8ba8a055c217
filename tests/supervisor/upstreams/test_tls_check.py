"""Health checks by TLS, with real servers: what they verify, what they say of a failure, and how they end."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from relay.address import Address
from relay.core import proxy_header
from relay.supervisor.probe import Tls, probe
from relay.supervisor.tls_check import HandshakeError, TrustStore, trust_problem
from relay.supervisor.upstreams import health_check
from tests.supervisor.upstreams.health_rig import Rig, text
from tests.supervisor.upstreams.tls_servers import NAME, OTHER, Authority, Ends, serving
from tests.support.clients import receive
from tests.support.observe import PATIENCE, descriptors
from tests.support.upstreams import Upstream

DAY = 86_400


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that is all of the system's trust store."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return made


async def checked(address: Address, *, name: str = NAME, timeout: float = PATIENCE, send_proxy: int = 0) -> float:
    return await probe(address, timeout, Tls(name, send_proxy), TrustStore())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda one: one.name)
async def test_a_handshake_asks_for_the_name_and_ends_as_a_complete_connection(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    ends = Ends()
    async with serving(ends, authority.context(days=30, version=version)) as address, asyncio.timeout(PATIENCE):
        expiry = await checked(address)
        assert await ends.wait(1) == ["eof"], "close_notify, and no reset"
    assert authority.names == [NAME]
    assert abs(expiry - time.time() - 30 * DAY) < 600


async def test_the_upstream_may_expect_a_proxy_header_before_the_handshake(authority: Authority) -> None:
    seen: list[bytes] = []
    expected, context = proxy_header.build(2, None, None), authority.context()

    def serve(sock: socket.socket) -> None:
        seen.append(receive(sock, len(expected)))
        with context.wrap_socket(sock, server_side=True) as tls:
            seen.append(tls.recv(1))

    with Upstream(serve) as upstream:
        assert await checked(upstream.address, send_proxy=2) > time.time()
    assert seen == [expected, b""]


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything and never answer: a private endpoint without its hub."""
    await reader.read()
    writer.close()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.close()


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await mute(reader, writer)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("expired", "certificate expired"),
        ("name", f"certificate of another name: not valid for {NAME}"),
        ("authority", "certificate of an unknown authority: unable to get local issuer certificate"),
        ("mute", "TLS handshake: not complete in 0.2 s"),
        ("plain", "TLS handshake: the answer is no TLS (wrong version number)"),
        ("hang up", "TLS handshake: the upstream closed the connection"),
    ],
)
async def test_a_failure_says_which(authority: Authority, tmp_path: Path, fault: str, why: str) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    context = {
        "expired": authority.context(days=-1),
        "name": authority.context(OTHER),
        "authority": Authority(stranger).context(),
    }.get(fault)
    serve = {"mute": mute, "plain": plain, "hang up": hang_up}.get(fault, mute)
    before = len(descriptors(os.getpid()))
    async with serving(serve, context) as address:
        with pytest.raises(HandshakeError) as raised:
            await checked(address, timeout=0.2 if fault == "mute" else PATIENCE)
    if fault != "plain":
        assert str(raised.value) == why
    else:
        # A server may reset before the answer was read.
        assert str(raised.value) in (
            why,
            "TLS handshake: connection reset by peer",
            "TLS handshake: the upstream closed the connection",
        )
    async with asyncio.timeout(PATIENCE):
        while len(descriptors(os.getpid())) > before:  # noqa: ASYNC110 - the server's own, which has no event
            await asyncio.sleep(0.01)


async def test_a_refused_connect_is_an_error_of_tcp_as_without_tls(authority: Authority) -> None:
    async with serving(mute) as address:
        pass
    with pytest.raises(ConnectionRefusedError):
        await checked(address)


async def test_an_upstream_that_accepts_and_does_not_answer_is_down_until_its_handshake_succeeds(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig()
    monkeypatch.setattr(health_check, "probe", rig.probe)
    async with serving(mute) as address, asyncio.timeout(2 * PATIENCE):
        port = address[1]
        async with rig.checker(address, timeout=0.2, tls=Tls(NAME)) as checker:
            assert await rig.change() == (address, False)
            assert checker.failure(address) == "TLS handshake: not complete in 0.2 s"
            assert checker.expiry(address) is None
    assert rig.log.lines == [("upstream down", text(address), "TLS handshake: not complete in 0.2 s")]
    rig.log.lines.clear()
    server = await asyncio.start_server(mute, "127.0.0.1", port, ssl=authority.context(days=-1))
    async with asyncio.timeout(2 * PATIENCE), rig.checker(address, tls=Tls(NAME)) as checker:
        assert await rig.change() == (address, False)
        assert checker.failure(address) == "certificate expired"
        server.close()
        server = await asyncio.start_server(mute, "127.0.0.1", port, ssl=authority.context(days=7))
        while await rig.change() != (address, True):
            pass  # refused for a moment
        assert checker.failure(address) == ""
        expiry = checker.expiry(address)
        assert expiry is not None
        assert abs(expiry - time.time() - 7 * DAY) < 600
    server.close()


async def test_one_address_may_answer_for_one_name_and_not_for_another(authority: Authority) -> None:
    async with serving(mute, authority.context()) as address, asyncio.timeout(PATIENCE):
        assert await checked(address) > time.time()
        with pytest.raises(HandshakeError, match=OTHER):
            await checked(address, name=OTHER)


def test_a_machine_without_authorities_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trust_problem() == "", "this machine has some"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert trust_problem() == (
        f"no certificate authority in {tmp_path}/none.pem and {tmp_path}, so no upstream can be verified: install the "
        "package ca-certificates, or set SSL_CERT_FILE to a file of authorities"
    )
    (tmp_path / "none.pem").write_text("one")
    assert trust_problem() == ""
