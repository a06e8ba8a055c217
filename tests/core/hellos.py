"""ClientHellos to test the parser with: built part by part, made by OpenSSL, cut into records, and damaged."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

SERVER_NAME, ALPN, SUPPORTED_GROUPS, SIGNATURES, VERSIONS, PSK_MODES, KEY_SHARE, PADDING = 0, 16, 10, 13, 43, 45, 51, 21
ECH, GREASE = 0xFE0D, 0x2A2A
X25519, MLKEM = 0x001D, 0x11EC  # X25519MLKEM768: its key share has 1,216 bytes
MAX_RECORD = 1 << 14


def vector(size: int, data: bytes) -> bytes:
    """`data` behind its length."""
    return len(data).to_bytes(size) + data


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, body)


def server_name(name: bytes, kind: int = 0) -> bytes:
    return extension(SERVER_NAME, vector(2, bytes([kind]) + vector(2, name)))


def alpn(names: Sequence[bytes]) -> bytes:
    return extension(ALPN, vector(2, b"".join(vector(1, name) for name in names)))


def tls13(key_shares: Sequence[tuple[int, int]] = ((X25519, 32),)) -> bytes:
    """What makes a hello one of TLS 1.3; key shares by group and length in bytes."""
    groups = b"".join(group.to_bytes(2) for group in (MLKEM, X25519, 0x0017))
    shares = b"".join(group.to_bytes(2) + vector(2, b"\x09" * length) for group, length in key_shares)
    return (
        extension(VERSIONS, vector(1, b"\x03\x04\x03\x03"))
        + extension(SUPPORTED_GROUPS, vector(2, groups))
        + extension(SIGNATURES, vector(2, b"\x04\x03\x08\x04\x04\x01\x05\x03\x08\x05"))
        + extension(PSK_MODES, vector(1, b"\x01"))
        + extension(KEY_SHARE, vector(2, shares))
    )


def hello(
    extensions: bytes | None, session: bytes = b"", ciphers: bytes = b"\x13\x01\xc0\x2f\xc0\x2b\x00\xff"
) -> bytes:
    """A handshake message; with None there are no extensions at all, as before TLS 1.2."""
    body = b"\x03\x03" + bytes(range(32)) + vector(1, session) + vector(2, ciphers) + vector(1, b"\0")
    if extensions is not None:
        body += vector(2, extensions)
    return b"\x01" + vector(3, body)


def records(message: bytes, sizes: Sequence[int] = ()) -> bytes:
    """The message in handshake records of these sizes, what is left over in as few as possible."""
    data = b""
    for size in [*sizes, *[MAX_RECORD] * (len(message) // MAX_RECORD + 1)]:
        part, message = message[:size], message[size:]
        if part:
            data += b"\x16\x03\x01" + vector(2, part)
    return data


def by_openssl(
    name: str | None, *, protocols: Sequence[str] = (), newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> bytes:
    """The first flight of an OpenSSL client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


@dataclass
class Server:
    """OpenSSL's side of the comparison."""

    context: ssl.SSLContext

    def name_of(self, data: bytes) -> tuple[bool, str | None]:
        """Whether a server that receives this asks which name to serve, and the name; None: the client named none."""
        asked: list[str | None] = []

        def callback(_socket: object, name: str | None, _context: ssl.SSLContext) -> int:
            asked.append(name)
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        self.context.sni_callback = callback
        incoming = ssl.MemoryBIO()
        incoming.write(data)
        server = self.context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
        try:
            server.do_handshake()
        except ssl.SSLError:
            pass
        return bool(asked), asked[0] if asked else None


# --- strategies -------------------------------------------------------------------------------------------------------

LABELS = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
HOSTS = st.one_of(NAMES, NAMES.map(lambda name: name + "."), st.just("xn--bcher-kva.example")).map(str.encode)
PROTOCOLS = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4)
OTHER = st.one_of(
    st.just(tls13()),
    st.just(tls13(((MLKEM, 1216), (X25519, 32)))),
    st.just(extension(GREASE, b"\0")),
    st.binary(max_size=300).map(lambda body: extension(ECH, b"\0" + body)),
    st.integers(0, 700).map(lambda size: extension(PADDING, bytes(size))),
)


@st.composite
def hellos(draw: st.DrawFn) -> tuple[bytes, bytes | None, list[bytes]]:
    """A hello in records, its server name, and its protocols."""
    name = draw(st.none() | HOSTS)
    protocols = draw(st.just([]) | PROTOCOLS)
    parts = draw(st.lists(OTHER, max_size=4, unique_by=lambda part: part[:2]))
    if name is not None:
        parts.insert(draw(st.integers(0, len(parts))), server_name(name))
    if protocols:
        parts.insert(draw(st.integers(0, len(parts))), alpn(protocols))
    message = hello(b"".join(parts), draw(st.binary(max_size=32)))
    return records(message, draw(st.lists(st.integers(1, 600), max_size=6))), name, protocols


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A hello with some bytes changed, inserted, removed or cut off."""
    data = bytearray(draw(hellos())[0])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.integers(0, 3))
        if how == 0 and data:
            data[at] = draw(st.integers(0, 255))
        elif how == 1:
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif how == 2:
            del data[at : at + draw(st.integers(1, 3))]
        else:
            del data[at:]
    return bytes(data)
