"""Parser and builder of PROXY protocol headers, versions 1 and 2: a proxy's statement of the client's address.

Sections are those of HAProxy's proxy-protocol.txt. `parse(data)` returns the header, or None while more bytes are
needed, and raises NotProxy or Malformed. `build` makes a header to send. Of the TLVs after the addresses (section 2.2)
the checksum is verified, and the link id that an Azure Private Link Service gives each of its private endpoints is
read: "Getting connection information using TCP Proxy v2" in Azure's documentation of that service.

A sender may claim any address in a header, so only the headers of known proxies may be trusted (section 5).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from relay.core.crc32c import crc32c

Address = tuple[str, int] | tuple[str, int, int, int]  # as accept(2) gives it, the host always literal

V1_LIMIT = 107  # bytes, CRLF included: section 2.1
LIMIT = 4096  # bytes of a whole version 2 header; usually at most 536 (section 2), more only with certificates

_V1_SIGNATURE = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_UNKNOWN = b"PROXY UNKNOWN"
_CRLF = b"\r\n"

# The start of a version 2 header: the signature, version and command, family and protocol, length.
_START = struct.Struct("!12xBBH")
_TLV = struct.Struct("!BH")  # type, length of the value
_VERSION_2 = 2
_LOCAL, _PROXY = 0, 1
_INET, _INET6 = 1, 2
_ADDRESSES = (0, 12, 36, 216)  # size of the address block by family, in bytes: AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX
_IPV4 = struct.Struct("!4s4sHH")
_IPV6 = struct.Struct("!16s16sHH")
_STREAM, _DGRAM = 1, 2

_CRC32C, _CRC32C_SIZE = 0x03, 4
_AZURE, _AZURE_LINK_ID, _AZURE_SIZE = 0xEE, 0x01, 5

_GROUPS = struct.Struct("!8H")
_ZEROS = tuple(":" + "0:" * count for count in range(8, 1, -1))
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2: an IPv4 address written as IPv6


class NotProxy(ValueError):
    """The first bytes are not a PROXY header: they differ from both signatures."""


class Malformed(ValueError):
    """A PROXY header breaks the specification."""


class ProxyHeader(NamedTuple):
    """The contents of a header.

    `size` is its length in bytes; the client's bytes follow. `local` means that the header has no addresses to use and
    the connection's own apply: LOCAL (the proxy's own connection, such as a health check), UNKNOWN in version 1, and in
    version 2 everything but TCP over IPv4 or IPv6. `source` and `destination` are None then, and never otherwise.
    `link_id` is the number of the private endpoint from an Azure Private Link Service; None without one.
    """

    size: int
    version: int
    local: bool
    source: Address | None
    destination: Address | None
    link_id: int | None


def parse(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None if it is incomplete. Raises NotProxy or Malformed.

    NotProxy is raised at the first byte that fits neither signature. Bytes after the header are ignored.
    """
    if data.startswith(_V2_SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1_SIGNATURE):
        return _parse_v1(data)
    if _V2_SIGNATURE.startswith(data) or _V1_SIGNATURE.startswith(data):
        return None
    raise NotProxy("not a PROXY header")


def build(version: int, source: Address | None, destination: Address | None) -> bytes:
    """A header for a TCP connection from `source` to `destination`, in version 1 or 2.

    If an address is None, the header has none: UNKNOWN in version 1, LOCAL in version 2. A zone id (after %) is left
    out. Raises ValueError for another version, addresses of two families, or an invalid address or port.
    """
    if version not in (1, 2):
        raise ValueError(f"there is no version {version} of the PROXY protocol")
    if source is None or destination is None:
        return _UNKNOWN + _CRLF if version == 1 else _start(_LOCAL, 0, 0)
    ends = [_pack(address[0].partition("%")[0]) for address in (source, destination)]
    ports = (source[1], destination[1])
    if len(ends[0]) != len(ends[1]):
        raise ValueError(f"two families: {source[0]} and {destination[0]}")
    if not all(0 <= port <= 0xFFFF for port in ports):
        raise ValueError(f"no ports: {ports}")
    ipv4 = len(ends[0]) == 4
    if version == 1:
        hosts = [_dotted(end) if ipv4 else _groups(end) for end in ends]
        return f"PROXY {'TCP4' if ipv4 else 'TCP6'} {hosts[0]} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()
    family, block = (_INET, _IPV4) if ipv4 else (_INET6, _IPV6)
    return _start(_PROXY, family << 4 | _STREAM, block.size) + block.pack(*ends, *ports)


def _start(command: int, family: int, length: int) -> bytes:
    return _V2_SIGNATURE + struct.pack("!BBH", _VERSION_2 << 4 | command, family, length)


# --- version 1, section 2.1 -------------------------------------------------------------------------------------------


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, ending, _ = data[:V1_LIMIT].partition(_CRLF)
    # Without a CRLF yet, a CR at the end may be its first half.
    if b"\n" in line or b"\r" in (line if ending else line[:-1]):
        raise Malformed("a lone CR or LF")
    if not ending:
        if len(data) >= V1_LIMIT:
            raise Malformed(f"no CRLF within {V1_LIMIT} bytes")
        return None
    size = len(line) + len(_CRLF)
    if line == _UNKNOWN or line.startswith(_UNKNOWN + b" "):
        return ProxyHeader(size, 1, local=True, source=None, destination=None, link_id=None)
    fields = line.decode("ascii", "replace").split(" ")
    if len(fields) != 6:
        raise Malformed(f"{len(fields)} fields instead of 6")
    _, protocol, source, destination, source_port, destination_port = fields
    if protocol not in ("TCP4", "TCP6"):
        raise Malformed(f"protocol {protocol!r}")
    width = 4 if protocol == "TCP4" else 16
    return ProxyHeader(
        size,
        1,
        local=False,
        source=_address(_host(source, width), _port(source_port)),
        destination=_address(_host(destination, width), _port(destination_port)),
        link_id=None,
    )


def _host(text: str, width: int) -> bytes:
    """The address in a version 1 header as `width` bytes. Raises Malformed.

    The form ::ffff:10.0.0.1 is accepted: the specification does not describe it, but HAProxy sends it.
    """
    try:
        packed = _pack(text)
    except ValueError:
        packed = b""
    if len(packed) != width or "%" in text:
        raise Malformed(f"address {text!r}")
    return packed


def _port(text: str) -> int:
    if not text.isdecimal() or (text[0] == "0" and text != "0") or int(text) > 0xFFFF:
        raise Malformed(f"port {text!r}")
    return int(text)


# --- version 2, section 2.2 -------------------------------------------------------------------------------------------


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _START.size:
        return None
    version_command, family_protocol, length = _START.unpack_from(data)
    version, command = version_command >> 4, version_command & 0xF
    family, protocol = family_protocol >> 4, family_protocol & 0xF
    size = _START.size + length
    if version != _VERSION_2:
        raise Malformed(f"version {version} behind the signature of version 2")
    if command not in (_LOCAL, _PROXY):
        raise Malformed(f"command {command}")
    if size > LIMIT:
        raise Malformed(f"the header is longer than {LIMIT} bytes")
    block = _ADDRESSES[family] if family < len(_ADDRESSES) else 0
    if command == _LOCAL:
        if block > length:  # for LOCAL the family has no meaning, so the address block may be absent
            block = 0
    elif family >= len(_ADDRESSES) or protocol > _DGRAM:
        raise Malformed(f"family and protocol 0x{family_protocol:02x}")
    elif block > length:
        raise Malformed(f"{length} bytes have no room for the addresses")
    if len(data) < size:
        return None
    source: Address | None = None
    destination: Address | None = None
    # Other protocols than TCP count as without addresses, as section 2.2 asks of receivers that do not implement them.
    if command == _PROXY and protocol == _STREAM and family in (_INET, _INET6):
        ends = (_IPV4 if family == _INET else _IPV6).unpack_from(data, _START.size)
        source, destination = _address(ends[0], ends[2]), _address(ends[1], ends[3])
    link_id = None
    if _START.size + block < size:
        header = data[:size]
        tlvs = _tlvs(header, _START.size + block)
        if tlvs is not None:
            link_id = _link_id(header, tlvs)
        elif command != _LOCAL:  # a LOCAL header must be accepted whatever it contains
            raise Malformed("a TLV runs over the end of the header")
    return ProxyHeader(size, 2, source is None, source, destination, link_id)


def _tlvs(header: bytes, at: int) -> list[tuple[int, int, int]] | None:
    """The TLVs from offset `at`: type, start and end of the value of each; None if they do not end with the header."""
    found = []
    while at < len(header):
        value = at + _TLV.size
        if value > len(header):
            return None
        kind, length = _TLV.unpack_from(header, at)
        at = value + length
        found.append((kind, value, at))
    return found if at == len(header) else None


def _link_id(header: bytes, tlvs: list[tuple[int, int, int]]) -> int | None:
    """The link id of the first TLV that has one. Verifies the checksum. Unknown types are ignored, like NOOP."""
    link_id = None
    verified = False
    for kind, value, end in tlvs:
        if kind == _CRC32C:
            if verified:  # undefined by the specification, and each checksum costs a pass over the header
                raise Malformed("two checksums")
            _verify(header, value, end)
            verified = True
        elif kind == _AZURE and end - value == _AZURE_SIZE and header[value] == _AZURE_LINK_ID and link_id is None:
            link_id = int.from_bytes(header[value + 1 : end], "little")
    return link_id


def _verify(header: bytes, value: int, end: int) -> None:
    """Verify the checksum, section 2.2.3. In network byte order, as HAProxy sends it; RFC 4960 swaps the bytes."""
    if end - value != _CRC32C_SIZE:
        raise Malformed(f"a checksum of {end - value} bytes")
    if crc32c(header[:value] + bytes(_CRC32C_SIZE) + header[end:]) != int.from_bytes(header[value:end]):
        raise Malformed("the checksum does not fit")


# --- addresses --------------------------------------------------------------------------------------------------------


def _pack(host: str) -> bytes:
    """A literal address as 4 or 16 bytes. Raises ValueError for other text."""
    return IPv6Address(host).packed if ":" in host else IPv4Address(host).packed


def _address(packed: bytes, port: int) -> Address:
    """An address as accept(2) returns it, except that the deprecated form ::10.0.0.1 (without ffff) is ::a00:1 here."""
    if len(packed) == 4:
        return _dotted(packed), port
    host = f"::ffff:{_dotted(packed[12:])}" if packed.startswith(_MAPPED) else _groups(packed)
    return host, port, 0, 0


def _dotted(packed: bytes) -> str:
    return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"


def _groups(packed: bytes) -> str:
    """An IPv6 address as RFC 5952 section 4 writes it, in hexadecimal groups only.

    Written here because `ipaddress` takes four times as long, and since Python 3.13 writes mapped addresses in dots.
    """
    text = f":{':'.join([f'{group:x}' for group in _GROUPS.unpack(packed)])}:"
    for zeros in _ZEROS:
        head, found, tail = text.partition(zeros)
        if found:
            return f"{head[1:]}::{tail[:-1]}"
    return text[1:-1]
