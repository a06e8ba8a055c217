"""Where HAProxy and relay do not say the same of a PROXY header: every kind of it, with the reason.

The words in quotes are those of HAProxy's proxy-protocol.txt. The list was made beside HAProxy 2.6 and the sources up
to 3.4; `always` is False for what only some of these do. A header that one side takes and the other refuses, and that
is of none of these kinds, is a defect of one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from relay.core.crc32c import crc32c
from tests.core.proxy_headers import (
    BLOCK,
    BLOCK6,
    LINE,
    LINE6,
    LOCAL,
    PROXY,
    SIGNATURE,
    TCP4,
    UDP4,
    UDP6,
    UNIX,
    UNIX_DGRAM,
    UNSPEC,
    tlv,
    v2,
    with_checksum,
)

AUTHORITY, CHECKSUM, UNIQUE_ID = 0x02, 0x03, 0x05
BLOCKS = {0: 0, 1: 12, 2: 36, 3: 216}  # bytes of the addresses by family
LINE4_NUMBERS = re.compile(rb"PROXY TCP4 ([0-9.]*) ([0-9.]*) ([0-9]*) ([0-9]*)\r\n")
LINE6_FIELDS = re.compile(rb"PROXY TCP6 ([^\r]*)\r\n")
LONGEST = 4096  # bytes that relay takes of a header in version 2


@dataclass(frozen=True)
class Difference:
    name: str
    why: str
    applies: Callable[[bytes], bool]
    examples: tuple[bytes, ...]  # each of which shows it
    always: bool = True


# --- version 1 --------------------------------------------------------------------------------------------------------


def _numbers(data: bytes) -> list[tuple[bytes, int]]:
    """Every number of a line that HAProxy might take, with the most that it may be; one that is left out is empty."""
    if found := LINE4_NUMBERS.match(data):
        parts = [address.split(b".") for address in found.groups()[:2]]
        if any(len(row) > 4 for row in parts):
            return []
        octets = [part for row in parts for part in (*row, *[b""] * (4 - len(row)))]
        return [*((octet, 0xFF) for octet in octets), *((port, 0xFFFF) for port in found.groups()[2:])]
    fields = _fields6(data)
    ports = [field.partition(b"\0")[0] for field in fields[2:4]]
    return [(port, 0xFFFF) for port in ports] if all(re.fullmatch(rb"[0-9]*", port) for port in ports) else []


def _fields6(data: bytes) -> list[bytes]:
    found = LINE6_FIELDS.match(data)
    return found[1].split(b" ") if found else []


def _heading_zero(data: bytes) -> bool:
    return any(len(number) > 1 and number.startswith(b"0") for number, _ in _numbers(data))


def _too_large(data: bytes) -> bool:
    return any(number and int(number) > most for number, most in _numbers(data))


def _left_out(data: bytes) -> bool:
    return any(not number for number, _ in _numbers(data))


# --- version 2 --------------------------------------------------------------------------------------------------------


def _is_v2(data: bytes, *commands: int) -> bool:
    """Whether it is a header in version 2, whole, with one of these commands (with the version: PROXY, LOCAL)."""
    return data.startswith(SIGNATURE) and len(data) >= 16 + _length(data) and data[12] in commands


def _length(data: bytes) -> int:
    return int.from_bytes(data[14:16])


def _tlvs(data: bytes) -> Iterator[tuple[int, int]]:
    """Type and length of each TLV behind the addresses, for which a LOCAL header need not have room."""
    end = 16 + _length(data)
    at = 16 + BLOCKS.get(data[13] >> 4, 0)
    at = 16 if at > end else at
    while at + 3 <= end:
        length = int.from_bytes(data[at + 1 : at + 3])
        yield data[at], length
        at += 3 + length


def _not_tcp(data: bytes) -> bool:
    return _is_v2(data, PROXY) and data[13] >> 4 in BLOCKS and data[13] & 0xF <= 2 and data[13] not in (0x11, 0x21)


def _longer(kind: int, most: int) -> Callable[[bytes], bool]:
    """Whether there is a TLV of that type with a value of more than `most` bytes; 0: of any type."""
    return lambda data: (
        _is_v2(data, PROXY) and any(length > most for found, length in _tlvs(data) if kind in (0, found))
    )


def _checksums(data: bytes) -> int:
    return sum(kind == CHECKSUM for kind, _ in _tlvs(data))


def two_checksums() -> bytes:
    """HAProxy has set the first to zero by the time that it looks at the second."""
    data = bytearray(v2(PROXY, TCP4, BLOCK + tlv(CHECKSUM, bytes(4)) * 2))
    for at in (len(data) - 4, len(data) - 11):
        data[at : at + 4] = crc32c(bytes(data)).to_bytes(4)
    return bytes(data)


# --- the list ---------------------------------------------------------------------------------------------------------

ONLY_RELAY = [
    Difference(
        "text behind UNKNOWN",
        "HAProxy knows the short form only, though for UNKNOWN 'the receiver must ignore anything presented before the "
        "CRLF is found'.",
        lambda data: data.startswith(b"PROXY UNKNOWN "),
        (b"PROXY UNKNOWN \r\n", b"PROXY UNKNOWN 192.168.0.1 192.168.0.11 56324 443\r\n"),
    ),
    Difference(
        "PROXY of what is not TCP",
        "HAProxy looks for the TLVs of a family that it does not implement at the beginning of the header, and finds "
        "none there. With UNSPEC a receiver is 'free to accept the connection anyway and use the real endpoint "
        "addresses or to reject it'; of UDP and UNIX sockets it 'automatically falls back to the UNSPEC mode'.",
        _not_tcp,
        (
            v2(PROXY, UNSPEC, b""),
            v2(PROXY, TCP4 - 1, BLOCK),
            v2(PROXY, UDP4, BLOCK),
            v2(PROXY, UDP6, BLOCK6),
            v2(PROXY, UNIX, bytes(216)),
            v2(PROXY, UNIX_DGRAM, bytes(216)),
        ),
    ),
    Difference(
        "a long authority",
        "HAProxy has room for 255 bytes; the specification gives no limit, and relay does not look at it.",
        _longer(AUTHORITY, 255),
        (v2(PROXY, TCP4, BLOCK + tlv(AUTHORITY, b"a" * 256)),),
    ),
    Difference(
        "a long unique id",
        "It has 'up to 128 bytes', but one 'may choose to skip over and ignore the TLVs it is not interested in'.",
        _longer(UNIQUE_ID, 128),
        (v2(PROXY, TCP4, BLOCK + tlv(UNIQUE_ID, bytes(129))),),
    ),
    Difference(
        "any long TLV",
        "From 2.9 on HAProxy keeps each, and none of more than 1,024 bytes; relay keeps none.",
        _longer(0, 1024),
        (v2(PROXY, TCP4, BLOCK + tlv(0xE0, bytes(1025))),),
        always=False,
    ),
    Difference(
        "whatever a LOCAL header has",
        "From 2.9 on HAProxy wants TLVs in it and nothing else, though the receiver 'must accept this connection as "
        "valid' and 'discard the protocol block including the family which is ignored'.",
        lambda data: _is_v2(data, LOCAL) and _length(data) > 0,
        (v2(LOCAL, TCP4, BLOCK), v2(LOCAL, UNSPEC, b"\xff\xff")),
        always=False,
    ),
]

ONLY_HAPROXY = [
    Difference(
        "heading zeroes",
        "'Heading zeroes are not permitted in front of numbers in order to avoid any possible confusion with octal "
        "numbers.'",
        _heading_zero,
        (
            LINE.replace(b"0.1 ", b"0.01 "),
            LINE.replace(b"0.11 ", b"0.000000011 "),
            LINE.replace(b"443", b"0443"),
            LINE6.replace(b"56324", b"056324"),
        ),
    ),
    Difference(
        "a number that is too large",
        "'[0..255] inclusive', '[0..65535] inclusive'; HAProxy takes the lowest 16 bits of a port, and adds what is "
        "too much for one part of an address to the part before it.",
        _too_large,
        (
            LINE.replace(b"0.1 ", b"0.256 "),
            LINE.replace(b"443", b"65536"),
            LINE.replace(b"443", b"4294967297"),
            LINE6.replace(b"443", b"65536"),
        ),
    ),
    Difference(
        "a number that is left out",
        "'Exactly 4 integers', 'exactly one space'; HAProxy reads a zero.",
        _left_out,
        (
            LINE.replace(b"192.168.0.1 ", b"192.168 "),
            LINE.replace(b"192.168.0.1 ", b"192..0.1 "),
            LINE.replace(b"192.168.0.1 ", b" "),
            LINE.replace(b"56324", b""),
            LINE6.replace(b"443", b""),
        ),
    ),
    Difference(
        "more behind the last port of TCP6",
        "'Any sequence which does not exactly match the protocol must be discarded'; HAProxy does not look at what "
        "comes behind the fifth space, nor at how long the line is.",
        lambda data: len(_fields6(data)) > 4,
        (
            LINE6.replace(b"443", b"443 "),
            LINE6.replace(b"443", b"443 \n 80"),
            LINE6.replace(b"443", b"443 " + b"a" * 200),
        ),
    ),
    Difference(
        "NUL within TCP6",
        "Likewise; each field ends there, for HAProxy reads them as strings of C.",
        lambda data: b"\0" in b" ".join(_fields6(data)[:4]),
        (LINE6.replace(b"::1", b"::1\0anything"), LINE6.replace(b"443", b"443\0anything")),
    ),
    Difference(
        "a header that is too long",
        f"The format is 'designed to fit in the smallest TCP segment', 536 bytes; relay takes {LONGEST}, which leaves "
        "room for certificates, and HAProxy as many as its buffer has.",
        lambda data: _is_v2(data, PROXY, LOCAL) and 16 + _length(data) > LONGEST,
        (v2(PROXY, TCP4, BLOCK + tlv(0xE0, bytes(1000)) * 5),),
    ),
    Difference(
        "two checksums",
        "Nothing says what the second would cover; HAProxy takes the first for zero then.",
        lambda data: _is_v2(data, PROXY, LOCAL) and _checksums(data) > 1,
        (two_checksums(),),
    ),
    Difference(
        "a LOCAL header's checksum",
        "Up to 2.8 HAProxy does not look into it; of a wrong one 'the receiver MUST treat the TCP connection providing "
        "the header as invalid'.",
        lambda data: _is_v2(data, LOCAL) and _checksums(data) > 0,
        (with_checksum(LOCAL, UNSPEC, b"", error=1), v2(LOCAL, UNSPEC, tlv(CHECKSUM, bytes(3)))),
        always=False,
    ),
]
