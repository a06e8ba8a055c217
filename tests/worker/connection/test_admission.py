"""What counts as one source: an address's network, however the address is written."""

from __future__ import annotations

import pytest

from relay.worker.connection.admission import SourceHash, pack

KEY = bytes(16)


def same(one: str, other: str, v4: int = 32, v6: int = 64) -> bool:
    sources = SourceHash(KEY, v4, v6)
    return sources.cached(one) == sources.cached(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8:0:0:ffff::2"),
        ("fe80::1%1", "fe80::1%2"),
    ],
)
def test_one_source(one: str, other: str) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        ("2001:db8::1", "2001:db8:0:1::1"),
        ("0.0.0.1", "::1"),
    ],
)
def test_two_sources(one: str, other: str) -> None:
    assert not same(one, other)


def test_prefixes_are_those_of_the_family() -> None:
    assert same("192.0.2.1", "192.0.2.200", v4=24)
    assert same("::ffff:192.0.2.1", "192.0.2.200", v4=24)
    assert not same("192.0.2.1", "192.0.3.1", v4=24)
    assert same("2001:db8::1", "2001:db8:ffff::1", v6=32)


def test_it_depends_on_the_secret_and_is_never_0() -> None:
    assert SourceHash(b"a" * 16, 32, 64).cached("192.0.2.1") != SourceHash(b"b" * 16, 32, 64).cached("192.0.2.1")
    assert all(SourceHash(KEY, 32, 64).cached(f"192.0.2.{number}") for number in range(256))


def test_packed() -> None:
    assert pack("192.0.2.1") == pack("::ffff:192.0.2.1") == bytes([192, 0, 2, 1])
    assert len(pack("2001:db8::1")) == 16
