"""Routes that a reload adds, changes and removes: for new connections, and no established one is cut."""

from __future__ import annotations

import contextlib
import socket

from tests.core.hellos import by_openssl
from tests.e2e.routes.places import route
from tests.support.clients import connect, exchange, receive
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "r.example"


def text(address: tuple[str, int]) -> str:
    return "{}:{}".format(*address)


def asking(stack: contextlib.ExitStack, relay: Relay, name: str = NAME) -> socket.socket:
    client = stack.enter_context(connect(relay.address()))
    sent = by_openssl(name)
    client.sendall(sent)
    assert receive(client, len(sent)) == sent
    return client


def change(relay: Relay, *routes: str, own: Echo, tables: str = "") -> None:
    relay.config.write_text(settings(listener(own.address, more="".join(routes)), workers=2, tables=tables))
    assert relay.post("/reload") == (200, "ok\n")


def test_added_changed_and_removed(echo: Echo, start: Start) -> None:
    with contextlib.ExitStack() as stack:
        first, second = stack.enter_context(Echo()), stack.enter_context(Echo())
        relay = start(settings(listener(echo.address), workers=2))
        with connect(relay.address()) as plain:  # accepted while nothing was read
            assert exchange(plain) == b"ping"
            change(relay, route("a", NAME, to=text(first.address)), own=echo)

            def led_to(server: Echo) -> bool:
                before = server.served
                with contextlib.ExitStack() as own:
                    for _ in range(4):
                        asking(own, relay)
                return server.served == before + 4

            wait_until(lambda: led_to(first), what="both workers have the route")
            old = asking(stack, relay)
            changed = route("a", NAME, to=text(second.address), more="rate = 1000.0")
            change(relay, changed, route("b", "b.example", to=text(first.address)), own=echo)
            wait_until(lambda: led_to(second), what="the other upstream")
            moved = asking(stack, relay)
            assert exchange(old) == b"ping"
            change(relay, own=echo)
            wait_until(lambda: led_to(echo), what="no route")
            assert exchange(old) == exchange(moved) == exchange(plain) == b"ping"
        found = relay.wait_status(lambda status: len(status["listeners"][0]["routes"]) == 1)
        (removed,) = found["listeners"][0]["routes"]
        assert (removed["name"], removed["state"], removed["active"]) == ("a", "removed", 2)
        metrics = relay.metrics()
        assert metrics.value("relay_route_connections_active", listener="main", route="a") == 2
        before = metrics.value("relay_route_connections_routed_total", listener="main", route="a")
        assert before >= 10
    relay.wait_active(0)
    assert relay.status()["listeners"][0]["routes"] == []
    change(relay, route("a", NAME, to=text(echo.address)), own=echo)
    counted = relay.metrics().value("relay_route_connections_routed_total", listener="main", route="a")
    assert counted == before, "a name that returns goes on where it was"
    relay.wait_active(0)


def test_a_connection_that_has_not_said_its_name_yet_goes_on(echo: Echo, start: Start) -> None:
    with Echo() as other:
        relay = start(settings(listener(echo.address, more=route("a", NAME, to=text(other.address))), workers=2))
        sent = by_openssl(NAME)
        with connect(relay.address()) as client:
            client.sendall(sent[:50])
            relay.wait_status(lambda status: sum(worker["held_bytes"] for worker in status["workers"]) == 50)
            change(relay, own=echo)
            client.sendall(sent[50:])
            assert receive(client, len(sent)) == sent
        assert other.served == 1, "by the routes under which it came"


def test_more_upstreams_than_there_is_room_for_change_nothing(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    relay.expected_errors.add("reload failed")
    answers = []
    for number in range(2):
        routes = [route(f"r{n}", f"{n}.example", to=f"127.0.0.1:{2000 + 600 * number + n}") for n in range(600)]
        relay.config.write_text(settings(listener(echo.address, more="".join(routes)), workers=2))
        answers.append(relay.post("/reload"))
    problem = "upstreams: 1201 different ones since the start, room for 1024; restart relay\n"
    assert answers == [(200, "ok\n"), (409, problem)]
    assert len(relay.status()["listeners"][0]["routes"]) == 600
    with connect(relay.address()) as client:
        client.sendall(b"not TLS")
        assert receive(client, 7) == b"not TLS"
