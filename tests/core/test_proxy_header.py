"""Both versions of the PROXY protocol as far as they are alike, damaged headers, and version 1."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.proxy_header import V1_LIMIT, Address, Malformed, NotProxy, ProxyHeader, build, parse
from tests.core.proxy_headers import (
    BLOCK,
    BLOCK6,
    CLIENT,
    CLIENT6,
    HEADERS,
    LINE,
    LINE6,
    LOCAL,
    MANY,
    PROXY,
    SERVER,
    SERVER6,
    SIGNATURE,
    TCP4,
    TCP6,
    UNSPEC,
    damaged,
    nothing,
    pairs,
    result_of,
    v2,
)

# --- both versions ----------------------------------------------------------------------------------------------------


@MANY
@given(st.sampled_from([1, 2]), pairs(), st.binary(max_size=8))
@example(1, (("::ffff:10.0.0.1", 1, 0, 0), ("::ffff:255.255.255.255", 2, 0, 0)), b"")
def test_what_is_built_is_read(version: int, pair: tuple[Address, Address], behind: bytes) -> None:
    """The hosts are written by the C library, as those of accept(2) are."""
    data = build(version, *pair)
    expected = ProxyHeader(len(data), version, local=False, source=pair[0], destination=pair[1], link_id=None)
    assert parse(data + behind) == expected


@MANY
@given(HEADERS)
def test_every_beginning_of_a_header_is_not_enough(data: bytes) -> None:
    for end in range(len(data)):
        assert parse(data[:end]) is None
    header = parse(data)
    assert header is not None
    assert header.size == len(data)
    assert header.local == (header.source is None) == (header.destination is None)


@MANY
@given(st.one_of(damaged(), st.binary(max_size=40), st.binary(max_size=40).map(lambda data: SIGNATURE + data)))
@example(b"PROXY " + b"a" * (V1_LIMIT - 7) + b"\r\n")
@example(b"PROXY UNKNOWN\r\r\n")
def test_byte_by_byte_gives_the_same(data: bytes) -> None:
    whole = result_of(data)
    for end in range(len(data)):
        early = result_of(data[:end])
        assert early is None or early == whole, "what is known early stays"
    if whole is not None:
        assert result_of(data + b"\r\n\0anything") == whole
        if isinstance(whole, ProxyHeader):
            assert 15 <= whole.size <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\x2a\x00\x04MQTT",
        b"\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY\t",
        b"proxy TCP4",
        b"\r\n\r\nQUIT\n",
        SIGNATURE[:11] + b"\r",
        SIGNATURE[1:] + LINE,
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    """Told by the first byte that fits neither signature, whatever follows."""
    ends = [end for end in range(len(data) + 1) if result_of(data[:end]) is NotProxy]
    assert ends == list(range(ends[0], len(data) + 1))
    fitting = data[: ends[0] - 1]
    assert SIGNATURE.startswith(fitting) or b"PROXY ".startswith(fitting)
    assert not SIGNATURE.startswith(data[: ends[0]])
    assert not b"PROXY ".startswith(data[: ends[0]])


@pytest.mark.parametrize(
    ("version", "source", "destination", "expected"),
    [
        (1, CLIENT, SERVER, LINE),
        (1, CLIENT6, SERVER6, LINE6),
        (2, CLIENT, SERVER, v2(PROXY, TCP4, BLOCK)),
        (2, CLIENT6, SERVER6, v2(PROXY, TCP6, BLOCK6)),
        (1, None, None, b"PROXY UNKNOWN\r\n"),
        (2, None, None, v2(LOCAL, UNSPEC, b"")),
        (1, CLIENT, None, b"PROXY UNKNOWN\r\n"),
        (2, None, SERVER, v2(LOCAL, UNSPEC, b"")),
        (1, ("fe80::1%eth0", 1, 0, 3), ("fe80::2", 2, 0, 0), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        (2, ("2001:db8::1%3", 56324, 7, 3), SERVER6, v2(PROXY, TCP6, BLOCK6)),
        # The specification knows hexadecimal digits only.
        (1, ("::ffff:10.0.0.1", 1, 0, 0), ("::", 2, 0, 0), b"PROXY TCP6 ::ffff:a00:1 :: 1 2\r\n"),
    ],
)
def test_what_is_sent(version: int, source: Address | None, destination: Address | None, expected: bytes) -> None:
    assert build(version, source, destination) == expected


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("source", "destination", "what"),
    [
        (CLIENT, SERVER6, "two families"),
        (CLIENT6, SERVER, "two families"),
        (("hub.example", 1), SERVER, "hub.example"),
        (("", 1), SERVER, "empty"),
        (CLIENT, ("10.0.0.1", 65536), "no ports"),
        (("10.0.0.1", -1), SERVER, "no ports"),
    ],
)
def test_what_cannot_be_sent(version: int, source: Address, destination: Address, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        build(version, source, destination)


@pytest.mark.parametrize("source", [CLIENT, None])
def test_there_is_no_version_3(source: Address | None) -> None:
    with pytest.raises(ValueError, match="version 3"):
        build(3, source, SERVER)


# --- version 1 --------------------------------------------------------------------------------------------------------


def test_the_specifications_example() -> None:
    request = b"GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n"
    assert parse(LINE + request) == ProxyHeader(len(LINE), 1, False, CLIENT, SERVER, None)


LONGEST = "ffff:" * 7 + "ffff"


@pytest.mark.parametrize(
    ("line", "size", "source"),
    [
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", 56, ("255.255.255.255", 65535)),
        (f"PROXY TCP6 {LONGEST} {LONGEST} 65535 65535\r\n", 104, (LONGEST, 65535, 0, 0)),
        ("PROXY UNKNOWN\r\n", 15, None),
        (f"PROXY UNKNOWN {LONGEST} {LONGEST} 65535 65535\r\n", V1_LIMIT, None),
    ],
)
def test_the_longest_lines_of_the_specification(line: str, size: int, source: Address | None) -> None:
    assert len(line) == size
    assert parse(line.encode()) == ProxyHeader(size, 1, source is None, source, source, None)


@pytest.mark.parametrize("start", ["PROXY UNKNOWN ", "PROXY TCP4 ", "PROXY "])
def test_a_line_that_is_too_long(start: str) -> None:
    data = start.encode().ljust(V1_LIMIT - 1, b"a")
    assert result_of(data) is None
    assert result_of(data + b"\r") is Malformed, "the LF would be byte 108"
    assert result_of(data[:-1] + b"\r") is None


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:0db8:0000:0000:0001:0000:0000:0000", "2001:db8:0:0:1::"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("1::2:0:0:3", "1::2:0:0:3"),
        ("::", "::"),
        ("::FFFF:a00:1", "::ffff:10.0.0.1"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),  # as HAProxy sends it
    ],
)
def test_hosts_have_one_form(written: str, host: str) -> None:
    header = parse(f"PROXY TCP6 {written} ::2 0 65535\r\n".encode())
    assert header is not None
    assert header[3:5] == ((host, 0, 0, 0), ("::2", 65535, 0, 0))


@pytest.mark.parametrize("rest", [b"", b" ", b" TCP4 1.2.3.4", b"   %\xff\0", b" PROXY TCP4 1.2.3.4 1.2.3.4 1 2"])
def test_whatever_an_unknown_line_has_is_ignored(rest: bytes) -> None:
    assert parse(b"PROXY UNKNOWN" + rest + b"\r\n") == nothing(15 + len(rest), 1)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"\r\n", b"\n", "lone"),
        (b"\r\n", b"\ra", "lone"),
        (b"\r\n", b"\r\r\n", "lone"),
        (b"\r\n", b"\n\r\n", "lone"),
        (b"TCP4", b"UNKNOWN\n", "lone"),
        (b"TCP4", b"UNKNOWN \r", "lone"),
        (b" 443", b"", "5 fields"),
        (b" 443", b" ", "port ''"),
        (b"443", b"443 ", "7 fields"),
        (b"PROXY TCP4", b"PROXY  TCP4", "7 fields"),
        (b"TCP4 ", b"TCP4  ", "7 fields"),
        (b"TCP4 ", b"TCP4\t", "5 fields"),
        (b"TCP4 192.168.0.1 192.168.0.11 56324 443", b"TCP4", "2 fields"),
        (b"TCP4 192.168.0.1 192.168.0.11 56324 443", b"UNKNOWNS", "2 fields"),
        (b"TCP4 192.168.0.1 192.168.0.11 56324 443", b"", "2 fields"),
        (b"TCP4", b"TCP5", "protocol 'TCP5'"),
        (b"TCP4", b"tcp4", "protocol 'tcp4'"),
        (b"TCP4", b"UDP4", "protocol 'UDP4'"),
        (b"TCP4", b"UNKNOWN4", "protocol 'UNKNOWN4'"),
        (b"TCP4", b"", "protocol ''"),
        (b"TCP4", b"TCP6", "address '192.168.0.1'"),
        *((b"192.168.0.1 ", host + b" ", "address") for host in (
            b"192.168.0.01", b"192.168.0.001", b"192.168.0.256", b"192.168.0", b"192.168.0.1.1", b"192.168..1", b"",
            b"192.168.0.+1", b"192.168.0.1/32", b"0xc0.168.0.1", b"3232235521", b"hub.example", b"192.168.0.1\0",
            b"192.168.0.\xb2", b"192.168.0.\xd9\xa1", b"2001:db8::1", b"::ffff:10.0.0.1",
        )),
        (b"192.168.0.11", b"192.168.0.011", "address '192.168.0.011'"),
        (b"192.168.0.11", b"2001:db8::1", "address '2001:db8::1'"),
        *((b"56324", port, "port") for port in (
            b"056324", b"00", b"01", b"+1", b"-1", b"65536", b"99999999", b"1_0", b"0x1", b"1.0", b"http", b"\xb2",
            b"\xd9\xa1",
        )),
        (b"443", b"0443", "port '0443'"),
        (b"443", b"443\0", "port"),
    ],
)  # fmt: skip
def test_a_malformed_line(old: bytes, new: bytes, what: str) -> None:
    """Each is the specification's example with one thing changed."""
    assert LINE.count(old) == 1
    with pytest.raises(Malformed, match=what):
        parse(LINE.replace(old, new))


@pytest.mark.parametrize(
    "host",
    [
        "fe80::1%eth0", "::1%", "2001:db8::1::2", "12345::", "::g", "::٣", "[::1]", "::1/128", "10.0.0.1", ":", "",
        "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:", "1:2:3:4:5:6:7:8:9", ":1::", "::ffff:10.0.0.01", "::ffff:10.0.0",
        "::ffff:10.0.0.256",
    ],
)  # fmt: skip
def test_a_malformed_ipv6_address(host: str) -> None:
    for line in (f"PROXY TCP6 {host} ::2 1 2\r\n", f"PROXY TCP6 ::2 {host} 1 2\r\n"):
        with pytest.raises(Malformed, match="address"):
            parse(line.encode())
