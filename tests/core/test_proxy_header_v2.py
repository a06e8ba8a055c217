"""Version 2 of the PROXY protocol: commands, families, TLVs, and the checksum."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.crc32c import crc32c
from relay.core.proxy_header import LIMIT, Address, Malformed, ProxyHeader, parse
from tests.core.proxy_headers import (
    BLOCK,
    BLOCK6,
    CLIENT,
    CLIENT6,
    LINK_ID,
    LOCAL,
    MANY,
    PROXY,
    SERVER,
    SERVER6,
    TCP4,
    TCP6,
    TLVS,
    UDP4,
    UDP6,
    UNIX,
    UNIX_DGRAM,
    UNSPEC,
    nothing,
    result_of,
    tlv,
    v2,
    with_checksum,
)

# --- version 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "body", "source", "destination"),
    [
        (TCP4, BLOCK, CLIENT, SERVER),
        (TCP6, BLOCK6, CLIENT6, SERVER6),
        (TCP4, BLOCK + tlv(4, b"") + tlv(4, bytes(9)) + tlv(1, b"mqtt") + tlv(0xFF, b""), CLIENT, SERVER),
    ],
)
def test_a_tcp_connection(family: int, body: bytes, source: Address, destination: Address) -> None:
    expected = ProxyHeader(16 + len(body), 2, False, source, destination, None)
    assert parse(v2(PROXY, family, body) + b"\x16\x03\x01") == expected


@pytest.mark.parametrize(
    ("family", "block"),
    [(0x00, 0), (0x01, 0), (0x02, 0), (0x10, 12), (UDP4, 12), (0x20, 36), (UDP6, 36), (0x30, 216), (UNIX, 216),
     (UNIX_DGRAM, 216)],
)  # fmt: skip
def test_what_is_not_tcp_gives_no_address(family: int, block: int) -> None:
    body = b"\x7f" * block
    assert parse(v2(PROXY, family, body)) == nothing(16 + block, 2)
    assert parse(v2(PROXY, family, body + LINK_ID)) == nothing(24 + block, 2, 0x12345678)
    if block:
        assert result_of(v2(PROXY, family, body[:-1])) is Malformed


@MANY
@given(st.integers(0, 255), st.one_of(st.binary(max_size=300), TLVS.map(b"".join)).filter(lambda body: 3 not in body))
@example(TCP4, bytes(4))
@example(TCP4, BLOCK)
@example(0x77, b"\xff" * 12)
def test_a_local_header_is_accepted_whatever_is_in_it(family: int, body: bytes) -> None:
    """Only a checksum, whose type is 3, can be wrong."""
    header = parse(v2(LOCAL, family, body))
    assert header is not None
    assert header == nothing(16 + len(body), 2, header.link_id)


@pytest.mark.parametrize(
    ("body", "link_id"),
    [
        (LINK_ID, 0x12345678),  # no room for the addresses, so there are none
        (LINK_ID + tlv(4, b"\0"), None),  # the 12 bytes of the addresses
        (LINK_ID + tlv(4, b"\0") + LINK_ID, 0x12345678),
    ],
)
def test_a_local_header_may_have_addresses(body: bytes, link_id: int | None) -> None:
    assert parse(v2(LOCAL, TCP4, body)) == nothing(16 + len(body), 2, link_id)


@pytest.mark.parametrize(
    ("body", "link_id"),
    [
        (LINK_ID, 0x12345678),
        (tlv(0xEE, b"\x01\xff\xff\xff\xff"), 0xFFFFFFFF),
        (tlv(0xEE, b"\x01\0\0\0\0"), 0),
        (tlv(4, bytes(5)) + tlv(1, b"h2") + LINK_ID + tlv(2, b"hub.example"), 0x12345678),
        (LINK_ID + tlv(0xEE, b"\x01\x01\0\0\0"), 0x12345678),
        (tlv(0xEE, b"\x02\x01\0\0\0") + LINK_ID, 0x12345678),
        (tlv(0xEE, b"\x02\x78\x56\x34\x12"), None),
        (tlv(0xEE, b"\x01\x78\x56\x34"), None),
        (tlv(0xEE, b"\x01\x78\x56\x34\x12\0"), None),
        (tlv(0xEE, b""), None),
        (tlv(0xEA, b"\x01\x78\x56\x34\x12"), None),  # Amazon's
        (tlv(4, LINK_ID), None),
    ],
)
def test_azures_link_id(body: bytes, link_id: int | None) -> None:
    assert parse(v2(PROXY, TCP4, BLOCK + body)) == ProxyHeader(28 + len(body), 2, False, CLIENT, SERVER, link_id)
    assert parse(v2(LOCAL, UNSPEC, body)) == nothing(16 + len(body), 2, link_id)
    assert parse(v2(LOCAL, TCP4, BLOCK + body)) == nothing(28 + len(body), 2, link_id)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        *((v2(version << 4 | 1, TCP4, BLOCK), f"version {version}") for version in (0, 1, 3, 15)),
        *((v2(0x20 | command, TCP4, BLOCK), f"command {command}") for command in (2, 3, 15)),
        *((v2(PROXY, family, bytes(216)), f"0x{family:02x}") for family in (0x03, 0x13, 0x1F, 0x41, 0x40, 0xF1, 0xFF)),
        (v2(PROXY, TCP4, BLOCK[:-1]), "room"),
        (v2(PROXY, TCP4, b""), "room"),
        (v2(PROXY, TCP6, BLOCK6[:-1]), "room"),
        (v2(PROXY, TCP6, BLOCK), "room"),
        (v2(PROXY, TCP4, b"", length=11), "room"),  # known before the rest has come
        (v2(PROXY, TCP4, b"", length=LIMIT - 15), "longer"),
        (v2(LOCAL, UNSPEC, b"", length=0xFFFF), "longer"),
        *((v2(PROXY, TCP4, BLOCK + LINK_ID[:end]), "runs over") for end in range(1, len(LINK_ID))),
        (v2(PROXY, TCP4, BLOCK + LINK_ID + b"\0"), "runs over"),
        (v2(PROXY, TCP4, BLOCK + b"\x04\xff\xff"), "runs over"),
        (v2(PROXY, TCP4, BLOCK + b"\x04\0\1") + b"\0" * 9, "runs over"),  # into what the client sends
        (v2(PROXY, UNSPEC, b"\x04\0\1"), "runs over"),
        (v2(PROXY, TCP4, BLOCK + tlv(3, bytes(3))), "of 3 bytes"),
        (v2(PROXY, TCP4, BLOCK + tlv(3, bytes(5))), "of 5 bytes"),
        (v2(LOCAL, UNSPEC, tlv(3, b"")), "of 0 bytes"),
        (with_checksum(PROXY, TCP4, BLOCK, error=1), "does not fit"),
        (with_checksum(PROXY, TCP4, BLOCK, behind=LINK_ID, error=1 << 31), "does not fit"),
        (with_checksum(LOCAL, UNSPEC, b"", error=1), "does not fit"),
        (with_checksum(PROXY, TCP4, BLOCK, behind=tlv(3, bytes(4))), "two"),
    ],
)  # fmt: skip
def test_a_malformed_header(data: bytes, what: str) -> None:
    with pytest.raises(Malformed, match=what):
        parse(data)


def test_the_longest_header() -> None:
    body = BLOCK + tlv(0x20, bytes(4096 - 16 - len(BLOCK) - 3))
    assert parse(v2(PROXY, TCP4, body)) == ProxyHeader(4096, 2, False, CLIENT, SERVER, None)
    assert result_of(v2(PROXY, TCP4, BLOCK, length=4097 - 16)) is Malformed


# --- the checksum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720 appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c(data: bytes, value: int) -> None:
    assert crc32c(data) == value


def test_a_checksum_by_haproxy() -> None:
    """What HAProxy 2.6 sends with `proxy-v2-options crc32c`."""
    block = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + b"\x01\x02\x03\x04"
    data = v2(PROXY, TCP4, block + tlv(3, b"\x5d\x9d\x76\x1e"))
    assert parse(data) == ProxyHeader(35, 2, False, ("10.0.0.1", 258), ("10.0.0.2", 772), None)
    assert data == with_checksum(PROXY, TCP4, block)


@pytest.mark.parametrize("behind", [b"", LINK_ID])
def test_a_checksum_covers_the_whole_header(behind: bytes) -> None:
    data = with_checksum(PROXY, TCP4, BLOCK, behind)
    expected = ProxyHeader(len(data), 2, False, CLIENT, SERVER, 0x12345678 if behind else None)
    assert parse(data + b"anything") == expected
    values = [*range(16, 28), *range(31, 35), *range(38, len(data))]  # all but the TLVs' types and lengths
    for at in values:
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert result_of(bytes(changed)) is Malformed, f"byte {at}, bit {bit}"
