"""PROXY headers to test the parser with: built part by part, drawn, and damaged."""

from __future__ import annotations

import os
import socket
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from relay.core.crc32c import crc32c
from relay.core.proxy_header import Address, Malformed, NotProxy, ProxyHeader, build, parse

MANY = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")), deadline=None)

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UDP6, UNIX, UNIX_DGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
CLIENT, SERVER = ("192.168.0.1", 56324), ("192.168.0.11", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324, 0, 0), ("2001:db8::b", 443, 0, 0)
BLOCK = bytes([192, 168, 0, 1, 192, 168, 0, 11, 0xDC, 0x04, 0x01, 0xBB])
BLOCK6 = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x0b" + BLOCK[8:]
LINE = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
LINE6 = b"PROXY TCP6 2001:db8::1 2001:db8::b 56324 443\r\n"


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, family]) + (len(body) if length is None else length).to_bytes(2) + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


LINK_ID = tlv(0xEE, b"\x01\x78\x56\x34\x12")


def with_checksum(command: int, family: int, block: bytes, behind: bytes = b"", error: int = 0) -> bytes:
    data = v2(command, family, block + tlv(3, bytes(4)) + behind)
    at = 16 + len(block) + 3
    return data[:at] + (crc32c(data) ^ error).to_bytes(4) + data[at + 4 :]


def result_of(data: bytes) -> Any:
    """What the parser answers, or the kind of its error."""
    try:
        return parse(data)
    except (NotProxy, Malformed) as error:
        return type(error)


def nothing(size: int, version: int, link_id: int | None = None) -> ProxyHeader:
    """A header without addresses."""
    return ProxyHeader(size, version, local=True, source=None, destination=None, link_id=link_id)


PORTS = st.integers(0, 0xFFFF)
# Zeros and the prefix of IPv4-mapped addresses are what an IPv6 address is written differently for.
PACKED6 = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff", b"\x20\x01"]), min_size=8, max_size=8).map(b"".join),
    st.binary(min_size=4, max_size=4).map(lambda end: bytes(10) + b"\xff\xff" + end),
).filter(lambda packed: any(packed[:12]))  # below ::1:0:0 what the C library writes is not RFC 5952's form
HOSTS4 = st.binary(min_size=4, max_size=4).map(lambda packed: socket.inet_ntop(socket.AF_INET, packed))
HOSTS6 = PACKED6.map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Address, Address]:
    if draw(st.booleans()):
        return (draw(HOSTS4), draw(PORTS)), (draw(HOSTS4), draw(PORTS))
    return (draw(HOSTS6), draw(PORTS), 0, 0), (draw(HOSTS6), draw(PORTS), 0, 0)


TLVS = st.lists(st.builds(tlv, st.sampled_from([1, 2, 4, 5, 0x20, 0xEE, 0xFF]), st.binary(max_size=8)), max_size=3)
HEADERS = st.one_of(
    st.builds(lambda version, pair: build(version, *pair), st.sampled_from([1, 2]), pairs()),
    st.sampled_from([UNSPEC, 0x10, TCP4, UDP4, UNIX]).flatmap(
        lambda family: st.builds(
            lambda command, tlvs: with_checksum(command, family, bytes([0, 12, 0, 216][family >> 4]), b"".join(tlvs)),
            st.sampled_from([LOCAL, PROXY]),
            TLVS,
        )
    ),
    st.sampled_from([LINE, LINE6, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN whatever \xff\0 it is\r\n"]),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(HEADERS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b" ", b"\r", b"\n", b"\r\n", b":", b".", b"0", b"%"]))
        )
    return bytes(data)
