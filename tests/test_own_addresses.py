"""Whether an address is this machine's, as the kernel has it; and which of them a relay listens on."""

from __future__ import annotations

import socket

import pytest

from relay.own_addresses import Endpoint, endpoint, is_certainly_own, is_local, is_own, written
from tests.support.namespace import inside, needs_namespace

ANY4, ANY6, DUAL = Endpoint("0.0.0.0", 443), Endpoint("::", 443), Endpoint("::", 443, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"])
def test_loopback_is_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["192.0.2.77", "2001:db8::77", "240.0.0.1", "fe80::77"])
def test_the_addresses_of_others_are_not(host: str) -> None:
    assert not is_local(host)


@pytest.mark.parametrize(
    ("host", "port", "listening", "own"),
    [
        ("127.0.0.1", 443, ANY4, True),
        ("127.0.0.2", 443, ANY4, True),
        ("127.0.0.1", 8443, ANY4, False),
        ("192.0.2.77", 443, ANY4, False),
        ("::1", 443, ANY4, False),
        ("::1", 443, ANY6, True),
        ("127.0.0.1", 443, ANY6, False),
        ("127.0.0.1", 443, DUAL, True),
        ("127.0.0.1", 443, Endpoint("127.0.0.1", 443), True),
        ("127.0.0.2", 443, Endpoint("127.0.0.1", 443), False),
        ("10.0.0.4", 443, Endpoint("10.0.0.4", 443), True),
    ],
)
def test_an_address_of_this_machine_with_a_port_that_is_listened_on(
    host: str, port: int, listening: Endpoint, own: bool
) -> None:
    assert is_own(host, port, [Endpoint("127.0.0.1", 1), listening]) is own
    assert is_certainly_own(host, port, [listening]) is own, "these can be told on every machine"


def test_where_a_socket_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert endpoint(sock) == Endpoint("127.0.0.1", sock.getsockname()[1])
    assert written("[::]:443") == ANY6
    if socket.has_dualstack_ipv6():
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
            assert endpoint(sock) == Endpoint("::", sock.getsockname()[1], True)


@needs_namespace
def test_the_addresses_of_an_interface_are_local_and_no_sysctl_makes_others_so() -> None:
    prepare = (
        "ip address add 192.0.2.7/32 dev lo && ip route add 192.0.2.8/32 dev lo && echo 1 > "
        "/proc/sys/net/ipv4/ip_nonlocal_bind && ip address add 2001:db8::7/128 dev lo && ip route add 2001:db8::8/128 "
        "dev lo && echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind"
    )
    printed = inside("tests.support.local_addresses", *PROBED, prepare=prepare)
    assert dict(zip(PROBED, printed.split(), strict=True)) == PROBED


PROBED = {"192.0.2.7": "True", "192.0.2.8": "False", "2001:db8::7": "True", "2001:db8::8": "False", "::1": "True"}
