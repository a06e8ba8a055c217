"""PROXY headers as HAProxy reads them and as relay's parser does: alike, apart from the kinds listed in `differences`.

A header goes to a real HAProxy (`accept-proxy`), which says in a header of its own (`send-proxy-v2`) what it has made
of it. That one is taken apart here, without relay's parser.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from relay.core import proxy_header
from relay.core.crc32c import crc32c
from relay.core.proxy_header import ProxyHeader
from tests.core.proxy_headers import (
    BLOCK,
    BLOCK6,
    HEADERS,
    LINE,
    LOCAL,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UDP4,
    UNIX,
    UNSPEC,
    damaged,
    result_of,
    tlv,
    v2,
)
from tests.e2e.proxy.differences import AUTHORITY, CHECKSUM, ONLY_HAPROXY, ONLY_RELAY, UNIQUE_ID, Difference
from tests.e2e.proxy.test_proxy import haproxy, needs_haproxy
from tests.support.clients import connect, drain, receive
from tests.support.programs import free_port
from tests.support.upstreams import Upstream

pytestmark = needs_haproxy

HEADERS_OF_A_KIND = settings(max_examples=300, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
SEED = 20  # of the headers that are drawn

RESET = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)

End = tuple[bytes, int]  # address and port


class Reading(NamedTuple):
    """What somebody makes of a header: source and destination, None for those of the connection itself, and the data
    that comes behind."""

    source: End | None
    destination: End | None
    behind: bytes


By = Callable[[bytes], Reading | None]


def by_relay(data: bytes) -> Reading | None:
    """None: refused. So is a header that is not whole, since the client says no more."""
    header = result_of(data)
    if not isinstance(header, ProxyHeader):
        return None
    return Reading(_end(header.source), _end(header.destination), data[header.size :])


def _end(address: proxy_header.Address | None) -> End | None:
    if address is None:
        return None
    return socket.inet_pton(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, address[0]), address[1]


@pytest.fixture(scope="module")
def by_haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[By]:
    """One HAProxy for all headers. None: it has ended the connection without passing anything on."""
    port = free_port()
    with Upstream(header_first) as server:
        target = "{}:{} send-proxy-v2".format(*server.address)
        with haproxy(tmp_path_factory.mktemp("beside"), f"127.0.0.1:{port} accept-proxy", target, port):

            def read(data: bytes) -> Reading | None:
                with connect(("127.0.0.1", port)) as client:
                    own = [_end(client.getsockname()), _end(client.getpeername())]
                    try:
                        client.sendall(data)  # at once: HAProxy wants the whole header in the first read
                        passed_on = receive(client, 1)
                        client.shutdown(socket.SHUT_WR)  # now: it drops who leaves before it has a server
                        passed_on += drain(client)
                    except OSError as error:  # a reset: it has not read what it refuses
                        if error.errno not in RESET:
                            raise
                        return None
                return _taken_apart(passed_on, own) if passed_on else None

            yield read


def header_first(sock: socket.socket) -> None:
    """Sends back HAProxy's header as soon as it is there, then all else."""
    start = receive(sock, 16)
    sock.sendall(start + receive(sock, int.from_bytes(start[14:16])))
    sock.sendall(drain(sock))


def _taken_apart(passed_on: bytes, own: list[End | None]) -> Reading:
    """What HAProxy says; the connection's own addresses mean that the header gave it none."""
    assert passed_on.startswith(SIGNATURE + bytes([PROXY])), passed_on
    width = {TCP4: 4, TCP6: 16}[passed_on[13]]
    block = passed_on[16:]
    source = block[:width], int.from_bytes(block[2 * width : 2 * width + 2])
    destination = block[width : 2 * width], int.from_bytes(block[2 * width + 2 : 2 * width + 4])
    behind = block[int.from_bytes(passed_on[14:16]) :]
    return Reading(None, None, behind) if [source, destination] == own else Reading(source, destination, behind)


def compared(data: bytes, by_haproxy: By) -> str:
    """How they agree, or the name of the difference. AssertionError for one that is not on the list."""
    ours, theirs = by_relay(data), by_haproxy(data)
    if ours == theirs:
        return "refused" if ours is None else "no address" if ours.source is None else "an address"
    kinds = ONLY_HAPROXY if ours is None else ONLY_RELAY if theirs is None else []
    names = [kind.name for kind in kinds if kind.applies(data)]
    assert names, f"{data!r}: relay {ours or 'refuses it'}, HAProxy {theirs or 'refuses it'}"
    return names[0]


def each(headers: st.SearchStrategy[bytes], by_haproxy: By) -> Counter[str]:
    """Compare what is drawn, and whatever may come behind it; how often it came to what."""
    seen: Counter[str] = Counter()

    @seed(SEED)
    @HEADERS_OF_A_KIND
    @given(headers, st.sampled_from([b"", b"hello", b"\r\n", LINE]))
    def compare(header: bytes, behind: bytes) -> None:
        seen[compared(header + behind, by_haproxy)] += 1

    compare()
    return seen


# --- headers that are nearly right ------------------------------------------------------------------------------------

HOSTS4 = [b"192.168.0.1", b"0.0.0.0", b"255.255.255.255"]
HOSTS6 = [
    b"2001:db8::1",
    b"::",
    b"::FFFF:a00:1",
    b"::ffff:10.0.0.1",
    b"::10.0.0.1",
    b"1:2:3:4:5:6:7:8",
    b"::2:3:4:5:6:7:8",
]
ODD_HOSTS = [
    b"", b"192.168.0.01", b"192.168.0.256", b"192.168.0", b"192.168..1", b"192.168.0.1.1", b"0xc0.168.0.1",
    b"hub.example", b"1:2:3:4:5:6:7", b"1:2:3:4::5:6:7:8", b"1::2::3", b"12345::", b"00001::", b"fe80::1%lo", b"::g",
    b"[::1]", b"::ffff:10.0.0.01", b"192.168.0.1\0", b"::1\0",
]  # fmt: skip
PORTS = [b"0", b"1", b"443", b"65535"]
ODD_PORTS = [b"", b"00", b"01", b"65536", b"4294967297", b"+1", b"-1", b"1.0", b"0x1", b"http", b"443\0", b"\xb2"]


PROTOCOLS = [b"TCP5", b"tcp4", b"UDP4", b"UNKNOWN", b"UNKNOWN6", b""]
ENDINGS = [b" \r\n", b" more\r\n", b"\0\r\n", b"\r\r\n", b"\n\r\n", b"\n", b"\r", b""]


def choices(hosts: list[bytes]) -> list[tuple[list[bytes], list[bytes]]]:
    """For each part of a line but the first: what it should be, and what it should not."""
    protocol, odd_hosts = (b"TCP4" if hosts is HOSTS4 else b"TCP6"), ODD_HOSTS + HOSTS4 + HOSTS6
    return [
        ([protocol], PROTOCOLS),
        (hosts, odd_hosts),
        (hosts, odd_hosts),
        (PORTS, ODD_PORTS),
        (PORTS, ODD_PORTS),
        ([b"\r\n"], ENDINGS),
    ]


def line(parts: list[bytes]) -> bytes:
    return b" ".join([b"PROXY", *parts[:-1]]) + parts[-1]


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of version 1 with at most two parts that it should not have."""
    wrong = draw(st.sets(st.integers(0, 5), max_size=2))
    parts = choices(draw(st.sampled_from([HOSTS4, HOSTS6])))
    return line([draw(st.sampled_from(odd if at in wrong else good)) for at, (good, odd) in enumerate(parts)])


TLVS = st.one_of(
    st.builds(tlv, st.sampled_from([1, 4, 0x20, 0x30, 0xEE, 0xFF]), st.binary(max_size=8)),
    st.builds(lambda size: tlv(AUTHORITY, b"a" * size), st.sampled_from([0, 255, 256])),
    st.builds(lambda size: tlv(UNIQUE_ID, bytes(size)), st.sampled_from([0, 128, 129])),
)


@st.composite
def binaries(draw: st.DrawFn) -> bytes:
    """A header of version 2 with at most two things wrong: command, family, checksum, what it has, or its length."""
    wrong = draw(st.sets(st.integers(0, 4), max_size=2))
    command = draw(st.sampled_from([0x22, 0x2F, 0x11, 0x31] if 0 in wrong else [PROXY, PROXY, LOCAL]))
    family = draw(st.sampled_from([UNSPEC, UDP4, UNIX, 0x13, 0x1F, 0x41, 0xFF] if 1 in wrong else [TCP4, TCP6]))
    block = {1: BLOCK, 2: BLOCK6, 3: bytes(216)}.get(family >> 4, b"")
    tlvs = b"".join(draw(st.one_of(st.just([]), st.lists(TLVS, max_size=3))))
    body = block + tlvs
    if 2 in wrong or draw(st.booleans()):
        body = block + tlv(CHECKSUM, bytes(4)) + tlvs
        checksum = crc32c(v2(command, family, body)) ^ (2 in wrong)
        body = block + tlv(CHECKSUM, checksum.to_bytes(4)) + tlvs
    if 3 in wrong:
        body = body[: -draw(st.sampled_from([1, 2, 5, 12]))]
    return v2(
        command, family, body, max(0, len(body) + draw(st.sampled_from([-12, -1, 1, 300]))) if 4 in wrong else None
    )


# --- the tests --------------------------------------------------------------------------------------------------------


def test_good_headers_are_read_alike(by_haproxy: By) -> None:
    """Those that relay's own tests draw, each of which relay takes."""
    seen = each(HEADERS, by_haproxy)
    assert seen["an address"] > 50
    assert seen["no address"] > 10
    assert not seen["refused"]


@pytest.mark.parametrize("headers", [damaged(), lines(), binaries()], ids=["damaged", "lines", "binaries"])
def test_headers_that_are_nearly_right_are_read_alike(headers: st.SearchStrategy[bytes], by_haproxy: By) -> None:
    seen = each(headers, by_haproxy)
    assert seen["an address"] > 20, seen
    assert seen["refused"] > 20, seen


@pytest.mark.parametrize("hosts", [HOSTS4, HOSTS6], ids=["TCP4", "TCP6"])
def test_every_part_that_is_wrong_by_itself_is_read_alike(hosts: list[bytes], by_haproxy: By) -> None:
    parts = choices(hosts)
    for at, (_, odd) in enumerate(parts):
        for wrong in odd:
            compared(line([wrong if place == at else good[0] for place, (good, _) in enumerate(parts)]), by_haproxy)


@pytest.mark.parametrize("kind", ONLY_RELAY, ids=lambda kind: kind.name)
def test_what_relay_alone_takes(kind: Difference, by_haproxy: By) -> None:
    for data in kind.examples:
        assert kind.applies(data)
        ours, theirs = by_relay(data + b"hello"), by_haproxy(data + b"hello")
        assert ours is not None
        assert ours.behind == b"hello"
        assert theirs is None or (theirs == ours and not kind.always), f"no difference any more: {data!r}"


@pytest.mark.parametrize("kind", ONLY_HAPROXY, ids=lambda kind: kind.name)
def test_what_haproxy_alone_takes(kind: Difference, by_haproxy: By) -> None:
    for data in kind.examples:
        assert kind.applies(data)
        ours, theirs = by_relay(data + b"hello"), by_haproxy(data + b"hello")
        assert ours is None
        assert theirs is not None or not kind.always, f"no difference any more: {data!r}"
