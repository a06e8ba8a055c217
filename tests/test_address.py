"""What may be written for an address, and the one spelling that comes of it."""

from __future__ import annotations

import string
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import AddressError, format_hostport, parse_address, parse_host, parse_hostport


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("myhub.azure-devices.net:8883", ("myhub.azure-devices.net", 8883)),
        ("MyHub.Azure-Devices.NET.:443", ("myhub.azure-devices.net", 443)),
        ("localhost:0", ("localhost", 0)),
        ("_amqps._tcp.example:5671", ("_amqps._tcp.example", 5671)),
        ("xn--bcher-kva.example:443", ("xn--bcher-kva.example", 443)),
        ("1and1.example:65535", ("1and1.example", 65535)),
        ("10.0.0.4:443", ("10.0.0.4", 443)),
        ("[::]:443", ("::", 443)),
        ("[FD00:0:0::1]:443", ("fd00::1", 443)),
        ("[::ffff:10.0.0.4]:443", ("10.0.0.4", 443)),
    ],
)
def test_host_and_port_come_out_in_one_spelling(text: str, expected: tuple[str, int]) -> None:
    assert parse_hostport(text, allow_name=True) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("myhub", "has no port"),
        ("10.0.0.4", "has no port"),
        ("[::1]", "has no port"),
        ("::1", "has no port"),
        (":443", "has no host"),
        ("*:443", "has no host"),
        ("hub:", "has no valid port"),
        ("hub:65536", "has no valid port"),
        ("hub:-1", "has no valid port"),
        ("hub:+1", "has no valid port"),
        ("hub: 1", "has no valid port"),
        ("hub:٤٤٣", "has no valid port"),
        ("hub:443x", "has no valid port"),
        ("hub:999999999999", "has no valid port"),
        ("https://hub:443", "has a slash"),
        ("10.0.0.0/8:443", "has a slash"),
        ("hub:1:2", "goes in brackets"),
        ("[::1:443", r"is not \[address\]:port"),
        ("[::1]443", r"is not \[address\]:port"),
        ("[10.0.0.4]:443", "has no IPv6 address in its brackets"),
        ("[hub]:443", "has no IPv6 address in its brackets"),
        ("[]:443", "has no IPv6 address in its brackets"),
        ("[fe80::1%eth0]:443", "zone id"),
        ("fe80::1%eth0", "zone id"),
        ("bücher.example:443", "xn--"),
        ("10.0.0.256:443", "is not an IPv4 address"),
        ("10.0.0:443", "is not an IPv4 address"),
        ("010.0.0.4:443", "is not an IPv4 address"),
        ("-hub:443", "is not a host name"),
        ("hub-:443", "is not a host name"),
        ("a..b:443", "is not a host name"),
        (".:443", "is not a host name"),
        ("a b:443", "is not a host name"),
        ("hub\n:443", "is not a host name"),
        ("a" * 64 + ":443", "is not a host name"),
        (".".join(["a" * 63] * 4) + ":443", "more than 253 characters"),
    ],
)
def test_what_is_no_host_and_port_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        parse_hostport(text, allow_name=True)


def test_the_longest_name_is_a_name() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert parse_hostport(f"{name}.:1", allow_name=True) == (name, 1)


def test_a_name_is_refused_where_only_a_literal_address_will_do() -> None:
    with pytest.raises(AddressError, match="is not a literal address"):
        parse_hostport("localhost:8414", allow_name=False)


@pytest.mark.parametrize(
    ("text", "host"),
    [("Hub.example.", "hub.example"), ("10.0.0.4", "10.0.0.4"), ("fd00::1", "fd00::1"), ("[::1]", "::1")],
)
def test_a_host_alone_needs_no_brackets(text: str, host: str) -> None:
    assert parse_host(text, allow_name=True) == host


@pytest.mark.parametrize("text", ["hub:443", "[::1]:443", "10.0.0.4:"])
def test_a_host_alone_has_no_port(text: str) -> None:
    with pytest.raises(AddressError, match="has a port"):
        parse_host(text, allow_name=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("168.63.129.16", ("168.63.129.16", 53)),
        ("10.0.0.4:5353", ("10.0.0.4", 5353)),
        ("fd00::1", ("fd00::1", 53)),
        ("[fd00::1]", ("fd00::1", 53)),
        ("[fd00::1]:5353", ("fd00::1", 5353)),
    ],
)
def test_an_address_may_leave_its_port_to_the_default(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, default_port=53) == expected


LABELS = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=20)
NAMES = st.builds(lambda labels: ".".join([*labels, "net"]), st.lists(LABELS, max_size=5))
V6 = st.integers(1 << 48, (1 << 128) - 1).map(lambda value: str(IPv6Address(value)))  # those below include mapped IPv4
HOSTS = st.one_of(NAMES, st.ip_addresses(v=4).map(str), V6)


@given(HOSTS, st.integers(0, 65535))
def test_what_is_formatted_parses_back(host: str, port: int) -> None:
    assert parse_hostport(format_hostport(host, port), allow_name=True) == (host, port)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused_and_its_spelling_is_stable(text: str) -> None:
    try:
        host, port = parse_hostport(text, allow_name=True)
    except AddressError:
        return
    assert parse_hostport(format_hostport(host, port), allow_name=True) == (host, port)
