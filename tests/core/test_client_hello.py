"""The ClientHello parser, by itself and beside OpenSSL's (`make fuzz` for many examples more)."""

from __future__ import annotations

import os
import ssl
import tracemalloc
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core.client_hello import (
    EXTENSIONS,
    LIMIT,
    PROTOCOLS,
    RECORDS,
    ClientHello,
    Malformed,
    NotTls,
    parse,
    read,
)
from tests.core.hellos import (
    MLKEM,
    PADDING,
    X25519,
    Server,
    alpn,
    by_openssl,
    damaged,
    extension,
    hello,
    hellos,
    records,
    server_name,
    tls13,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAME = server_name(b"hub.example")


@pytest.fixture(scope="session")
def server() -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    trustme.CA().issue_cert("hub.example").configure_cert(context)
    return Server(context)


def result_of(data: bytes) -> Any:
    """What the parser answers, or the kind of its error."""
    try:
        return parse(data)
    except (NotTls, Malformed) as error:
        return type(error)


def normal(name: str | None) -> str:
    return (name or "").lower().removesuffix(".")


# --- beside OpenSSL ---------------------------------------------------------------------------------------------------


@MANY
@given(hellos())
def test_what_is_built_is_read(server: Server, built: tuple[bytes, bytes | None, list[bytes]]) -> None:
    data, name, protocols = built
    found = parse(data)
    assert [parse(data), parse(data)] == [found, found]  # however often one like it was read
    assert found == ClientHello(
        normal(name.decode() if name is not None else None),
        tuple(protocol.decode("ascii", "backslashreplace") for protocol in protocols),
    )
    asked, heard = server.name_of(data)
    if asked:
        assert normal(heard) == found.server_name


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # ssl's, of a name that is not ASCII
@MANY
@given(damaged())
def test_openssl_never_serves_a_name_that_was_not_seen(server: Server, data: bytes) -> None:
    """Whoever gets through OpenSSL with a name must have been let through for that name."""
    asked, name = server.name_of(data)
    found = result_of(data)
    if asked:
        assert isinstance(found, ClientHello), f"OpenSSL was asked for {name!r}, and this was {found}"
        assert found.server_name == normal(name)


@MANY
@given(st.one_of(hellos().map(lambda built: built[0]), damaged(), st.binary(max_size=200)), st.data())
def test_piece_by_piece_gives_the_same(data: bytes, draw: st.DataObject) -> None:
    whole = result_of(data)
    for end in [*draw.draw(st.lists(st.integers(0, len(data)), max_size=20)), len(data)]:
        early = result_of(data[:end])
        if early is not None:
            assert early == whole, "what is known early stays"
    assert result_of(data + b"\x16\x03\x01\x00\x01") == whole or whole is None


@settings(MANY, max_examples=EXAMPLES // 5)  # each is as many as it has bytes
@given(st.one_of(hellos().map(lambda built: built[0]), damaged(), st.binary(max_size=200)))
def test_a_look_that_is_put_off_comes_in_time(data: bytes) -> None:
    """Before there are as many bytes as the last look asked for, there is nothing to be seen."""
    due = 0
    for end in range(len(data) + 1):
        try:
            found = read(data[:end])
        except (NotTls, Malformed):
            assert end >= due
            break
        if isinstance(found, ClientHello):
            assert end >= due
            break
        assert found > end, "more than there is"
        assert found >= due
        due = found


@MANY
@given(hellos())
def test_a_hello_that_drips_is_looked_at_a_few_times_for_each_record(built: tuple[bytes, Any, Any]) -> None:
    data, end, looks = built[0], 0, 0
    while not isinstance(found := read(data[:end]), ClientHello):
        end, looks = found, looks + 1
    assert looks <= 9 * data.count(b"\x16\x03\x01") + 1


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("protocols", [(), ("mqtt", "x-amqp"), ("h2", "http/1.1")])
@pytest.mark.parametrize("name", ["hub.example", "Hub.Example", "bücher.example", "10.0.0.4", None])
def test_openssls_own(server: Server, name: str | None, protocols: tuple[str, ...], newest: ssl.TLSVersion) -> None:
    data = by_openssl(name, protocols=protocols, newest=newest)
    asked, heard = server.name_of(data)
    assert asked
    assert parse(data) == ClientHello(normal(heard), protocols)


def test_a_resumed_session(server: Server) -> None:
    """Its hello has a pre-shared key, which has to be the last extension."""
    psk = extension(41, vector_of_identity() + b"\x00\x21\x20" + bytes(32))
    data = records(hello(NAME + tls13() + psk))
    assert parse(data) == ClientHello("hub.example", ())
    assert server.name_of(data) == (True, "hub.example")


def vector_of_identity() -> bytes:
    identity = (32).to_bytes(2) + bytes(32) + bytes(4)
    return len(identity).to_bytes(2) + identity


# --- by itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [25, 100, 1500])
def test_a_hello_in_many_records(size: int) -> None:
    message = hello(tls13(((MLKEM, 1216), (X25519, 32))) + NAME)
    assert 1300 < len(message) < 25 * RECORDS
    assert parse(records(message, [size] * (len(message) // size))) == ClientHello("hub.example", ())


def test_a_hello_in_too_many_records_is_given_up() -> None:
    data = records(hello(NAME), [1] * 200)
    assert len(data) > 6 * RECORDS
    assert result_of(data) is Malformed
    assert result_of(data[: 6 * RECORDS]) is Malformed
    assert result_of(data[: 6 * RECORDS - 1]) is None


def test_every_beginning_of_a_hello_is_not_enough() -> None:
    data = records(hello(NAME + alpn([b"mqtt"])), [40, 3])
    for end in range(len(data)):
        assert parse(data[:end]) is None
    assert parse(data) == ClientHello("hub.example", ("mqtt",))
    assert parse(data + b"anything") == ClientHello("hub.example", ("mqtt",))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n", NotTls),
        (b"\x10\x2a\x00\x04MQTT", NotTls),
        (b"\x80\x2e\x01\x03\x01", NotTls),  # SSL 2
        (b"\x16\x02\x01", NotTls),
        (b"\x15\x03\x01\x00\x02\x01\x00", NotTls),  # an alert
        (b"\x16\x03\x01\x00\x00", Malformed),
        (b"\x16\x03\x01\x40\x01", Malformed),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", Malformed),  # a server's hello
        (records(hello(NAME), [40])[:45] + b"\x17\x03\x03\x00\x10", Malformed),  # data within the hello
        (records(hello(NAME + NAME)), Malformed),
        (records(hello(server_name(b""))), Malformed),
        (records(hello(server_name(b"."))), Malformed),
        (records(hello(server_name(b"hub\0.example"))), Malformed),
        (records(hello(server_name(b"a" * 256))), Malformed),
        (records(hello(server_name("hüb".encode()))), Malformed),
        (records(hello(server_name(b"hub.example", kind=1))), Malformed),
        (records(hello(NAME)[:-1]), None),
        (records(hello(None)), ClientHello("", ())),
        (records(hello(b"")), ClientHello("", ())),
        (b"", None),
    ],
)
def test_what_is_no_hello(data: bytes, error: object) -> None:
    assert result_of(data) == error


@pytest.mark.parametrize(("count", "fits"), [(EXTENSIONS - 1, True), (EXTENSIONS, False), (3500, False)])
def test_as_many_extensions_as_no_client_has(count: int, fits: bool) -> None:
    """Beside its name; each takes its time, and there is room for thousands."""
    data = records(hello(NAME + b"".join(extension(1000 + number, b"") for number in range(count))))
    for _ in range(3):
        assert result_of(data) == (ClientHello("hub.example", ()) if fits else Malformed)


def test_the_names_of_protocols_are_read_as_far_as_somebody_may_want_to_read_them() -> None:
    names = [b"%04d" % number for number in range(3000)]
    for count in (PROTOCOLS, PROTOCOLS + 1, 3000):
        found = parse(records(hello(NAME + alpn(names[:count]))))
        assert found == ClientHello("hub.example", tuple(name.decode() for name in names[:PROTOCOLS]))


@pytest.mark.parametrize(("size", "fits"), [(LIMIT - 1000, True), (LIMIT, False), (60_000, False)])
def test_the_longest_hello(size: int, fits: bool) -> None:
    data = records(hello(NAME + extension(PADDING, bytes(size))))
    assert isinstance(result_of(data), ClientHello) is fits
    if not fits:
        assert result_of(data[:2000]) is Malformed, "its length is known at once"


def test_what_was_read_is_not_kept_without_a_bound() -> None:
    tracemalloc.start()
    try:
        for number in range(200):
            name = f"{number}.{'a' * 200}".encode()
            protocols = [f"{number}-{count}".encode() for count in range(1500)]
            assert parse(records(hello(server_name(name) + alpn(protocols))))
            assert parse(records(hello(server_name(name))))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1_000_000
