"""Parser of a TLS ClientHello for its server name and ALPN protocols: RFC 8446 section 4.1.2, RFC 6066, RFC 7301.

`parse(data)` returns the hello, or None while more bytes are needed, and raises NotTls or Malformed as soon as the
bytes cannot become one; `read(data)` says how many more are needed. Versions, ciphers and other extensions are ignored:
an encrypted hello (ECH) has the public server name in its outer part, and GREASE values (RFC 8701) are meant to be
ignored. The message may be spread over several records (RFC 8446 section 5.1).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from relay.core.hello_layouts import Layouts, TooMany, Truncated, Twice

LIMIT = 16384  # bytes, record headers included: many times what clients send, even with post-quantum key shares
RECORDS = 64  # clients need one or two; a hello that comes in pieces is parsed again from the start, at bounded cost
# The most extensions and ALPN protocols that are read: each costs time, and 16 KiB have room for thousands. Clients
# send one or two dozen extensions, of some 80 kinds in all (IANA's registry, and 16 of GREASE), and a few protocols.
EXTENSIONS, PROTOCOLS = 256, 64

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_MAX_FRAGMENT = 1 << 14  # RFC 8446 section 5.1
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_HEADERS = _RECORD_HEADER + _MESSAGE_HEADER
# The type, major version and length of a record; the type and length of a message.
_BOTH_HEADERS = struct.Struct("!HxHI")
_HANDSHAKE_3 = _HANDSHAKE << 8 | 3
_RANDOM_END = 2 + 32  # a hello begins with a version and a random value
_HOST_NAME = 0
_SHORT = 64  # bytes of ALPN: longest whose hellos are cached, which bounds the memory that a client can take
_OVERRUN = "a length runs over the end"
_MAX_NAME = 255  # bytes: RFC 1035 section 2.3.4, and what OpenSSL takes


class NotTls(ValueError):
    """The first bytes are not a TLS handshake record."""


class Malformed(ValueError):
    """A TLS handshake does not begin with a valid ClientHello."""


class ClientHello(NamedTuple):
    """The contents of a hello. `server_name` is lower-case, without a trailing dot, and "" if there is none."""

    server_name: str
    alpn: tuple[str, ...]


def parse(data: bytes) -> ClientHello | None:
    """The hello at the beginning of `data`; None if it is incomplete. Raises NotTls or Malformed."""
    found = read(data)
    return None if isinstance(found, int) else found


def read(data: bytes) -> ClientHello | int:
    """The hello at the beginning of `data`, or the length that `data` must have before another call can tell more.

    So a hello that drips in is parsed a few times for each of its records, and not once for each byte. Raises NotTls
    or Malformed.
    """
    if len(data) > _HEADERS:
        record, room, message_header = _BOTH_HEADERS.unpack_from(data)
        if record == _HANDSHAKE_3 and message_header >> 24 == _CLIENT_HELLO:
            # Fast path: the whole hello in one record, as nearly all come.
            needed = _HEADERS + (message_header & 0xFFFFFF)
            if needed <= _RECORD_HEADER + room <= LIMIT and needed <= len(data):
                return _hello(data[_HEADERS:needed])
    message = bytearray()
    at = 0
    needed = _MESSAGE_HEADER
    for _ in range(RECORDS):
        header = data[at : at + _RECORD_HEADER]
        _check_header(header, first=at == 0)
        if len(header) < _RECORD_HEADER:
            # The first two bytes of a header are checked one by one.
            return at + (len(header) + 1 if len(header) < 2 else _RECORD_HEADER)
        length = int.from_bytes(header[3:5])
        if not 0 < length <= _MAX_FRAGMENT:
            raise Malformed(f"a record of {length} bytes")
        at += _RECORD_HEADER
        message += data[at : at + length]
        if message and message[0] != _CLIENT_HELLO:
            raise Malformed(f"handshake message {message[0]} instead of a hello")
        if len(message) >= _MESSAGE_HEADER:
            needed = _MESSAGE_HEADER + int.from_bytes(message[1:4])
            if needed > LIMIT:
                raise Malformed(f"the hello is longer than {LIMIT} bytes")
        at += length
        missing = needed - len(message) if message else 1
        if missing <= 0:
            return _hello(bytes(message[_MESSAGE_HEADER:needed]))
        if len(data) < at:
            return min(at, len(data) + missing)
    raise Malformed(f"a hello in more than {RECORDS} records")


def _check_header(header: bytes, *, first: bool) -> None:
    """Raise for a record header, or its first bytes, that does not belong to a handshake."""
    if header and header[0] != _HANDSHAKE:
        raise NotTls("not a TLS handshake") if first else Malformed(f"record type {header[0]} within the hello")
    if len(header) > 1 and header[1] != 3:  # every version of TLS, and SSL 3, writes 3.x here
        raise NotTls("not a TLS version") if first else Malformed("another version within the hello")


def _hello(data: bytes) -> ClientHello:
    """Parse a message without its header. By index, since every connection passes here."""
    size = len(data)
    try:
        length = data[_RANDOM_END]
        if length > 32:
            raise Malformed("a session id of more than 32 bytes")
        at = _RANDOM_END + 1 + length
        length = data[at] << 8 | data[at + 1]
        if not length or length % 2:
            raise Malformed("no valid list of cipher suites")
        at += 2 + length
        if not data[at]:
            raise Malformed("no compression method")
        at += 1 + data[at]
        if at == size:
            return ClientHello("", ())
        length = data[at] << 8 | data[at + 1]
        at += 2
    except IndexError:
        raise Malformed(_OVERRUN) from None
    if at + length != size:
        raise Malformed(_OVERRUN if at + length > size else "bytes after the extensions")
    try:
        server_name, alpn = _layouts.find(data[at:])
    except Truncated:
        raise Malformed(_OVERRUN) from None
    except Twice:
        raise Malformed("an extension twice") from None
    except TooMany:
        raise Malformed(f"more than {EXTENSIONS} extensions") from None
    return _cached(server_name, alpn) if alpn is None or len(alpn) <= _SHORT else _contents(server_name, alpn)


_layouts = Layouts(EXTENSIONS)


def _contents(server_name: bytes | None, alpn: bytes | None) -> ClientHello:
    """The hello from the bodies of its two extensions."""
    return ClientHello(
        "" if server_name is None else _server_name(server_name),
        () if alpn is None else _alpn(alpn),
    )


_cached = lru_cache(maxsize=64)(_contents)  # devices of one hub send the same name and protocols


def _server_name(body: bytes) -> str:
    """The host name in a server_name extension, RFC 6066 section 3: a list of which only one type was ever defined."""
    size = len(body)
    if size < 5 or body[0] << 8 | body[1] != size - 2 or body[3] << 8 | body[4] != size - 5:
        raise Malformed("no valid list of one server name")
    if body[2] != _HOST_NAME:
        raise Malformed("a server name that is not a host name")
    name = body[5:]
    if not 0 < len(name) <= _MAX_NAME or b"\0" in name:
        raise Malformed("a server name of invalid length")
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("a server name that is not ASCII") from None
    text = text.lower().removesuffix(".")
    if not text:
        raise Malformed("an empty server name")
    return text


def _alpn(body: bytes) -> tuple[str, ...]:
    """The protocols in an ALPN extension, RFC 7301 section 3.1; the first PROTOCOLS of them, for logs only."""
    size = len(body)
    if size < 3 or body[0] << 8 | body[1] != size - 2:
        raise Malformed("no valid list of protocols")
    found: list[str] = []
    at = 2
    while at < size and len(found) < PROTOCOLS:
        length = body[at]
        at += 1 + length
        if not length or at > size:
            raise Malformed("a protocol without a name" if not length else _OVERRUN)
        found.append(body[at - length : at].decode("ascii", "backslashreplace"))
    return tuple(found)
