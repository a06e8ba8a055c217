"""Routes in the settings: what the short form makes of them, and what is said about those that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from relay.core.counters import ROUTE_SLOTS, UPSTREAM_SLOTS
from relay.settings.listeners import Route
from relay.settings.model import Settings

Load = Callable[..., Settings]
Problems = Callable[..., list[str]]
DPS = "global.azure-devices-provisioning.net"


def listener(*routes: str, name: str = "x", port: int = 1, more: str = 'upstream = ["a:1"]') -> str:
    return f'[[listeners]]\nname = "{name}"\nbind = ["127.0.0.1:{port}"]\n{more}\n' + "".join(routes)


def route(
    name: str = "r", sni: str = '"r.example"', upstream: str = '"b:1"', more: str = "", table: str = "listeners.routes"
) -> str:
    return f'[[{table}]]\nname = "{name}"\nsni = [{sni}]\nupstream = [{upstream}]\n{more}\n'


def short(**values: Any) -> str:
    return route(table="routes", **{"upstream": '"b"', **values})


def test_routes_of_a_listener_are_taken_in_order_and_in_one_spelling(load_text: Load) -> None:
    first = route(sni='"A.Example.", "*.B.example"', upstream='"C.example.:1", "[FD00::1]:2"', more="rate = 5.5")
    (item,) = load_text(listener(first, route("r.2-_", more='backup = ["B2:1"]'))).listeners
    assert item.routes == (
        Route(name="r", sni=("a.example", "*.b.example"), upstream=("c.example.:1", "[fd00::1]:2"), rate=5.5),
        Route(name="r.2-_", sni=("r.example",), upstream=("b:1",), backup=("b2:1",)),
    )
    assert item.destinations == ("a:1", "c.example.:1", "[fd00::1]:2", "b:1", "b2:1")


def test_routes_of_the_short_form_have_the_ports_of_its_listeners(load_text: Load) -> None:
    toml = 'upstream = ["hub.example"]\n' + short(name="dps", sni=f'"{DPS}"', upstream=f'"{DPS}"')
    toml += short(name="store", upstream='"fd00::1"', more='backup = ["b"]\nrate = 1.0\nlisteners = ["https"]')
    settings = load_text(toml)
    assert settings.routes == ()
    found = {item.name: item.routes for item in settings.listeners}
    assert found["mqtt"] == (Route(name="dps", sni=(DPS,), upstream=(f"{DPS}:8883",)),)
    assert found["amqp"] == (Route(name="dps", sni=(DPS,), upstream=(f"{DPS}:5671",)),)
    assert found["https"] == (
        Route(name="dps", sni=(DPS,), upstream=(f"{DPS}:443",)),
        Route(name="store", sni=("r.example",), upstream=("[fd00::1]:443",), backup=("b:443",), rate=1.0),
    )


def test_routes_alone_make_three_listeners_without_an_upstream_of_their_own(load_text: Load) -> None:
    settings = load_text(None, {"RELAY_ROUTES": json.dumps([{"name": "r", "sni": ["a.b"], "upstream": ["c"]}])})
    assert [(item.name, item.upstream, item.bind[0]) for item in settings.listeners] == [
        ("https", (), "0.0.0.0:443"),
        ("mqtt", (), "0.0.0.0:8883"),
        ("amqp", (), "0.0.0.0:5671"),
    ]


def implied(settings: Settings) -> list[str]:
    """The names of the routes that the listener mqtt has by itself."""
    return [item.name for item in settings.listeners[1].routes if item.optional]


@pytest.mark.parametrize(
    ("upstream", "names"),
    [
        (["myhub.azure-devices.net"], ["myhub.device"]),
        (["a.azure-devices.net", "10.0.0.4", "b.azure-devices.net", "a.azure-devices.net"], ["a.device", "b.device"]),
        (["myhub.device.azure-devices.net"], []),
        (["myhub.privatelink.azure-devices.net"], []),
        (["myhub.azure-devices.us"], []),
        (["azure-devices.net", "my-azure-devices.net"], []),
        (["x" * 51 + ".azure-devices.net"], []),
    ],
)
def test_a_hub_in_upstream_has_a_route_for_its_devices(load_text: Load, upstream: list[str], names: list[str]) -> None:
    assert implied(load_text(f"upstream = {json.dumps(upstream)}")) == names


@pytest.mark.parametrize(
    "written",
    [
        short(sni='"myhub.device.azure-devices.net"'),
        short(sni='"*.azure-devices.net"'),
        short(name="myhub.device", sni='"x.example"'),
    ],
    ids=["the same name", "a suffix", "the same route name"],
)
def test_a_written_route_takes_the_place_of_the_implied_one(load_text: Load, written: str) -> None:
    assert implied(load_text('upstream = ["myhub.azure-devices.net"]\n' + written)) == []
    only = written + 'listeners = ["amqp"]\n'
    assert implied(load_text('upstream = ["myhub.azure-devices.net"]\n' + only)) == ["myhub.device"]


SHADOWED = (
    'listeners[0].routes[2] ("c"): is never taken, since listeners[0].routes[0] ("a") and listeners[0].routes[1] '
    '("b"), '
    "written before it, have all of its names: write it further up, or take it out"
)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (listener(more=""), "listeners[0].upstream: missing; where to connect, each host:port; without it, write "),
        (listener(more="upstream = []"), "listeners[0].upstream: is empty; where to connect"),
        (
            listener(route(), more='sni = ["a.b"]'),
            "listeners[0].sni: names for the listener's own upstream, which is not set: set upstream, or give the ",
        ),
        (listener(route(), route(sni='"c.d"')), 'listeners[0].routes[1].name: "r" is also the name of listeners[0].'),
        (
            listener(route("a", '"*.x"'), route("b", '"y"'), route("c", '"Y.", "a.b.x", "*.c.x"')),
            SHADOWED,
        ),
        (
            listener(route(more='backup = ["c:1", "b:1"]')),
            'listeners[0].routes[0].backup: "b:1" is in upstream too; a backup is another place',
        ),
        (
            listener(route(more="rate = 5.0")) + listener(route(), name="y", port=2),
            'listeners[1].routes[0].rate: 0.0, but listeners[0].routes[0] has the same name, "r", and 5.0: routes of ',
        ),
        (listener(route(upstream='"127.0.0.1:1"')), 'listeners[0].routes[0].upstream[0]: "127.0.0.1:1" is this relay'),
        (
            listener(route(more='backup = ["127.0.0.1:1"]')),
            'listeners[0].routes[0].backup[0]: "127.0.0.1:1" is this relay',
        ),
        (listener(route("R")), 'listeners[0].routes[0].name: "R" is not 1 to 64 of a-z, 0-9, -, _ and .; name in '),
        (listener(route(sni="")), "listeners[0].routes[0].sni: is empty; server names of this route"),
        (listener(route(upstream="")), "listeners[0].routes[0].upstream: is empty; where to connect"),
        (listener(route(upstream='"b"')), 'listeners[0].routes[0].upstream[0]: "b" has no port'),
        (listener(route(more="rate = 0.0001")), "listeners[0].routes[0].rate: 0.0001 is less than 0.001"),
        (listener(route(more="rat = 1.0")), "listeners[0].routes[0].rat: unknown setting; did you mean rate?"),
        (
            listener(more='upstream = ["a:1"]\nroutes = 1'),
            "listeners[0].routes: 1 is not a list of tables; write [[list",
        ),
        (
            listener() + short(),
            "routes and listeners: both given; [[routes]] belongs to the listeners https, mqtt, amqp of the short form",
        ),
        (
            short(upstream='"b:443"'),
            'routes[0].upstream[0]: "b:443" has a port; upstream keeps the ports 443, 8883 and 5671',
        ),
        (
            'upstream = ["a"]\n' + short(more='listeners = ["https", "ftp"]'),
            'routes[0].listeners[1]: "ftp" is not one of "https", "mqtt", "amqp"',
        ),
        (
            short(more='listeners = ["https", "amqp"]'),
            "routes: no route is for the listener mqtt, which without upstream has nowhere to connect to: ",
        ),
        (
            short() + short(name="s"),
            'routes[1] ("s"): is never taken, since routes[0] ("r"), written before it, has all ',
        ),
        (short(upstream='"127.0.0.1"'), 'routes[0].upstream[0]: "127.0.0.1:443" is this relay'),
    ],
)
def test_a_mistake_is_named(problems: Problems, toml: str, problem: str) -> None:
    found = problems(toml)
    assert found[0].startswith(problem)
    assert len(found) == 1 or all("127.0.0.1" in line for line in found)


def test_a_route_in_the_environment_is_named_by_its_variable(problems: Problems) -> None:
    tables = [{"name": "r", "sni": ["a.b"], "upstream": ["c"], "listeners": ["x"]}]
    found = problems(None, {"RELAY_UPSTREAM": "a.example", "RELAY_ROUTES": json.dumps(tables)})
    assert found == ['RELAY_ROUTES (routes[0].listeners[0]): "x" is not one of "https", "mqtt", "amqp"']


def test_routes_of_one_name_for_different_listeners_are_fine(load_text: Load) -> None:
    only = [
        short(upstream=f'"{name}"', more=f'rate = 2.0\nlisteners = ["{name}"]') for name in ("https", "mqtt", "amqp")
    ]
    found = [item.routes[0].upstream for item in load_text("".join(only)).listeners]
    assert found == [("https:443",), ("mqtt:8883",), ("amqp:5671",)]


def test_there_is_room_for_a_thousand_upstreams_and_two_thousand_routes(load_text: Load, problems: Problems) -> None:
    def many(count: int, upstreams: int) -> str:
        tables = [{"name": f"r{n}", "sni": [f"{n}.b"], "upstream": [f"u{n % upstreams}:1"]} for n in range(count)]
        return json.dumps([{"name": "x", "bind": ["127.0.0.1:1"], "routes": tables}])

    assert len(load_text(None, {"RELAY_LISTENERS": many(ROUTE_SLOTS, UPSTREAM_SLOTS)}).listeners[0].routes) == 2048
    assert problems(None, {"RELAY_LISTENERS": many(ROUTE_SLOTS + 1, UPSTREAM_SLOTS + 1)}) == [
        "routes: 2049, over all listeners; at most 2048",
        "upstream: 1025 different ones, over all listeners and routes; at most 1024",
    ]
