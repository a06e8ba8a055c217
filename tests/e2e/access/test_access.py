"""Access lists: who is not on them is reset before anything is dialled; thousands of networks change nothing."""

from __future__ import annotations

import json

import pytest

from tests.support.clients import connect, crowd, exchange, receive, refused
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

MANY = 10_000


def access(allow: list[str], deny: list[str]) -> str:
    # A list of strings is written alike in JSON and in TOML.
    return f"[access]\nallow = {json.dumps(allow)}\ndeny = {json.dumps(deny)}\n"


def elsewhere(count: int) -> list[str]:
    """So many networks that nobody here is in, none of them beside another."""
    return [f"10.{number >> 7}.{number % 128 * 2}.0/24" for number in range(count)]


@pytest.mark.parametrize(
    ("allow", "deny", "served", "not_served"),
    [
        (["127.0.0.0/30"], [], ["127.0.0.1", "127.0.0.3"], ["127.0.0.4", "127.1.0.1"]),
        ([], ["127.0.1.0/24"], ["127.0.0.1", "127.0.2.0"], ["127.0.1.0", "127.0.1.255"]),
        (["127.0.0.0/8"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.3"], ["127.0.0.2"]),
        (["2001:db8::/32"], [], [], ["127.0.0.1"]),
    ],
    ids=["allow", "deny", "both", "other family"],
)
def test_who_is_let_in(
    echo: Echo, start: Start, allow: list[str], deny: list[str], served: list[str], not_served: list[str]
) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=access(allow, deny)))
    for source in served:
        with connect(relay.address(), source) as client:
            assert exchange(client) == b"ping"
    for source in not_served:
        assert refused(relay.address(), source)
    relay.wait_active(0)
    outcomes = {"refused_access": len(not_served)} | ({"ok": len(served)} if served else {})
    relay.wait_outcomes(outcomes)
    assert echo.served == len(served), "the upstream never saw the others"


def test_ten_thousand_networks(echo: Echo, start: Start) -> None:
    """More than a message to a worker could carry."""
    networks = elsewhere(MANY)
    relay = start(settings(listener(echo.address), workers=2, tables=access([*networks, "127.0.0.1"], networks[::2])))
    with crowd(relay.address(), 50, ["127.0.0.1", "127.0.0.2"]) as clients:
        assert (len(clients.served), clients.refused) == (50, 50)
    relay.wait_active(0)


def test_who_is_refused_has_no_place(echo: Echo, start: Start) -> None:
    tables = access(["127.0.0.1"], []) + "[limits]\nmax_connections = 3\n"
    relay = start(settings(listener(echo.address), workers=2, tables=tables))
    with crowd(relay.address(), 20, ["127.0.0.2"]) as strangers:
        assert strangers.refused == 20
    with crowd(relay.address(), 3, ["127.0.0.1"]) as clients:
        assert len(clients.served) == 3
    relay.wait_active(0)


def test_a_network_of_all_ipv6_addresses_denies_ipv4_mapped_ones(echo: Echo, start: Start) -> None:
    """Those are what a PROXY header of IPv6, or a socket for both families, says of IPv4 clients."""
    one = listener(echo.address, more='proxy_protocol = "accept"')
    relay = start(settings(one, tables=access([], ["::/0"])))
    for source, served in (("TCP6 ::ffff:192.0.2.1 ::1", False), ("TCP4 192.0.2.1 127.0.0.1", True)):
        with connect(relay.address()) as client:
            client.sendall(f"PROXY {source} 50000 8883\r\nping".encode())
            if served:
                assert receive(client, 4) == b"ping"
            else:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
    relay.wait_outcomes({"refused_access": 1, "ok": 1})
