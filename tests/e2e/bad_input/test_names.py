"""Name servers that are silent, wrong or back again, and names with addresses that do not answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.support.clients import connect, crowd, echoes, refused, was_reset
from tests.support.dns_server import NameServer
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

Unharmed = Callable[..., AbstractContextManager[None]]
NAME = "hub.example"


def test_a_name_is_resolved_once_for_all_workers_and_clients(echo: Echo, start: Start) -> None:
    with NameServer({NAME: ["127.0.0.1"]}, ttl=300) as names:
        relay = start(settings(listener(f"{NAME}:{echo.address[1]}"), workers=2, tables=names.table()))
        with crowd(relay.address(), 100) as clients:
            assert len(clients.served) == 100
        assert len(names.queries) == 2  # A and AAAA


def test_a_silent_name_server(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with NameServer({NAME: ["127.0.0.1"]}, silent=True) as names:
        toml = settings(
            listener(f"{NAME}:{echo.address[1]}"), listener(echo.address, name="echo"), tables=names.table()
        )
        relay = start(toml, ready=False)
        with unharmed(relay, "echo"), connect(relay.address()) as client:
            client.sendall(b"hello?")
            relay.wait_active(1)
            assert echoes(relay.address("echo"))  # while it waits
            assert was_reset(client)
        status = relay.status()
        assert status["listeners"][0]["outcomes"] == {"resolve_failed": 1}
        names.silent = False
        wait_until(lambda: _served(relay.address()), what="served after the name server is back")
        wait_until(lambda: relay.events("resolves again"), what="the log saying so")


def test_a_name_that_does_not_exist_until_it_does(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    with NameServer({}) as names:
        toml = settings(
            listener(f"{NAME}:{echo.address[1]}"), listener(echo.address, name="echo"), tables=names.table()
        )
        relay = start(toml)
        with unharmed(relay, "echo"):
            assert refused(relay.address())
            relay.wait_outcomes({"resolve_failed": 1})
        asked = len(names.queries)
        # A crowd behind a name that fails does not become a crowd of queries.
        with crowd(relay.address(), 50) as clients:
            assert clients.refused == 50
        assert len(names.queries) <= asked + 8  # those that it asks by itself
        names.addresses[NAME] = ["127.0.0.1"]
        wait_until(lambda: _served(relay.address()), what="served once the name exists")
    (line,) = relay.told("cannot resolve")
    assert (line["level"], line["name"]) == ("warning", NAME)


def test_the_second_address_is_used_when_the_first_refuses(echo: Echo, start: Start, unharmed: Unharmed) -> None:
    # The echo listens on 127.0.0.1 alone, so the same port of 127.0.0.2 refuses.
    with NameServer({NAME: ["127.0.0.2", "127.0.0.1"]}, ttl=300) as names:
        relay = start(settings(listener(f"{NAME}:{echo.address[1]}"), tables=names.table()))
        with unharmed(relay):
            for _ in range(10):
                assert echoes(relay.address())
        relay.wait_outcomes({"ok": 11})
        assert {line["address"] for line in relay.access(11)} == {f"127.0.0.1:{echo.address[1]}"}
        assert {line["upstream"] for line in relay.access(11)} == {f"{NAME}:{echo.address[1]}"}


def test_the_second_name_server_is_asked_when_the_first_is_silent(echo: Echo, start: Start) -> None:
    with NameServer({}, silent=True) as silent, NameServer({NAME: ["127.0.0.1"]}, ttl=300) as good:
        servers = [f"{host}:{port}" for host, port in (silent.address, good.address)]
        toml = settings(listener(f"{NAME}:{echo.address[1]}"), tables=f"[dns]\nnameservers = {servers}\n")
        relay = start(toml)
        assert echoes(relay.address())
        assert silent.queries
        assert good.queries


def _served(address: tuple[str, int]) -> bool:
    try:
        return echoes(address)
    except OSError:
        return False
