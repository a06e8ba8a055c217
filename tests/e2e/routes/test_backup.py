"""A route's backup: used while every upstream of the route is down, and left again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tests.core.hellos import by_openssl
from tests.e2e.routes.places import route
from tests.support.clients import connect, exchange, receive
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

NAME = "r.example"
CHECKS = "rise = 2\nfall = 2\n"


def led_to(relay: Relay) -> str:
    """The address of a new connection of the route."""
    sent = by_openssl(NAME)
    with connect(relay.address()) as client:
        client.sendall(sent)
        receive(client, len(sent))
        name = "{}:{}".format(*client.getsockname())
    line = wait_until(lambda: next((line for line in relay.events("connection") if line["client"] == name), None))
    assert line is not None
    return str(line["address"])


def text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def both_workers(relay: Relay, wanted: str) -> Callable[[], bool]:
    return lambda: all(led_to(relay) == wanted for _ in range(6))


def test_the_backup_is_used_while_every_upstream_is_down(echo: Echo, start: Start) -> None:
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        backup = stack.enter_context(Echo())
        first = contextlib.ExitStack()
        second = contextlib.ExitStack()
        first.enter_context(Echo(port=ports[0]))
        second.enter_context(Echo(port=ports[1]))
        to = f'127.0.0.1:{ports[0]}", "127.0.0.1:{ports[1]}'
        routed = route("r", NAME, to=to, more=f'backup = ["{text(backup.address)}"]')
        relay = start(settings(listener(echo.address, more=routed), workers=2, checks=0.3) .replace(
            "interval = 0.3\n", f"interval = 0.3\n{CHECKS}"))  # fmt: skip
        own = {f"127.0.0.1:{port}" for port in ports}
        assert led_to(relay) in own
        assert relay.get("/readyz") == (200, "ok\n")
        first.close()
        wait_until(both_workers(relay, f"127.0.0.1:{ports[1]}"), what="one of two is left")
        assert not relay.events("route on backup: all of its upstreams are down")
        second.close()
        (line,) = relay.told("route on backup: all of its upstreams are down")
        assert (line["level"], line["route"], line["listeners"]) == ("warning", "r", ["main"])
        wait_until(both_workers(relay, text(backup.address)), what="the backup")
        assert relay.get("/readyz") == (200, "on backup: main.r\n")
        metrics = relay.metrics()
        assert metrics.value("relay_route_backup", listener="main", route="r") == 1
        assert metrics.value("relay_route_up", listener="main", route="r") == 1
        assert relay.status()["listeners"][0]["routes"][0]["state"] == "backup"
        with connect(relay.address()) as stays:
            sent = by_openssl(NAME)
            stays.sendall(sent)
            assert receive(stays, len(sent)) == sent
            stack.enter_context(Echo(port=ports[0]))
            (line,) = relay.told("route back on its upstreams")
            assert (line["level"], line["route"]) == ("info", "r")
            wait_until(both_workers(relay, f"127.0.0.1:{ports[0]}"), what="its own upstream")
            assert exchange(stays) == b"ping", "returning moves no established connection"
        assert relay.get("/readyz") == (200, "ok\n")
        assert relay.metrics().value("relay_route_backup", listener="main", route="r") == 0


def test_without_an_upstream_and_without_a_backup_that_is_up(echo: Echo, start: Start) -> None:
    """The other routes and the listener's own upstream still serve; the reason names the route."""
    routed = route("r", NAME, to=f"127.0.0.1:{free_port()}", more=f'backup = ["127.0.0.1:{free_port()}"]')
    relay = start(settings(listener(echo.address, more=routed), checks=0.3).replace("0.3\n", f"0.3\n{CHECKS}"))
    relay.wait_status(lambda status: status["reason"] == "no upstream: main.r", what="the route is down")
    assert relay.get("/readyz") == (200, "no upstream: main.r\n")
    assert relay.metrics().value("relay_route_up", listener="main", route="r") == 0
    relay.wait_status(lambda status: status["listeners"][0]["routes"][0]["state"] == "down")


def test_a_listener_without_an_upstream_of_its_own_is_served_by_its_routes(start: Start, echo: Echo) -> None:
    port = free_port()
    with Echo(port=port) as server:
        relay = start(
            settings(listener(more=route("r", NAME, to=text(server.address))), checks=0.3).replace(
                "0.3\n", f"0.3\n{CHECKS}"
            )
        )
        assert relay.get("/readyz") == (200, "ok\n")
    relay.wait_status(lambda status: status["reason"] == "no upstream: main.r", what="the route is down")
    assert relay.get("/readyz") == (503, "no upstream: main.r\n")
