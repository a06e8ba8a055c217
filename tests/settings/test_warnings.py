"""Settings that are valid and seldom meant: which of them are warned of, and which are not."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.access_list import AccessList
from relay.settings.model import Settings
from relay.settings.tables import AccessSettings
from relay.settings.warnings import settings_warnings

Load = Callable[..., Settings]
SHORT = 'upstream = ["hub.example"]\n'
HUB = '"myhub.azure-devices.net:8883"'
ROUTE = '[[listeners.routes]]\nname = "r"\nsni = ["r.example"]\nupstream = [{}]\n'


def listener(upstream: str, more: str = "", name: str = "x", port: int = 1) -> str:
    return f'[[listeners]]\nname = "{name}"\nbind = ["127.0.0.1:{port}"]\nupstream = [{upstream}]\n{more}\n'


ADMIN = (
    "admin.bind: {} is open to the network: anyone who reaches it can drain and reload this relay; bind 127.0.0.1 or "
    "[::1], or restrict it with a firewall"
)
HELLO = (
    "timeouts.client_hello: 0, so a client of listeners.x that sends nothing holds its connection for ever: set a "
    "number of seconds"
)
IDLE = (
    "timeouts.idle: {} s is less than 1767, the longest keep-alive of an MQTT client: quiet devices of listeners.{} "
    "are cut off"
)
HUBS = (
    "{}.upstream: {} are {} IoT Hubs, and a connection goes to any of them: many devices reach one that does not know "
    "them; give each hub a route of its own"
)
SOURCES = "[dial]\nsource_addresses = [{}]\n"


@pytest.mark.parametrize(
    ("toml", "warnings"),
    [
        (SHORT, []),
        # who may ask and order
        (SHORT + '[admin]\nbind = "0.0.0.0:8414"', [ADMIN.format("0.0.0.0:8414")]),
        (SHORT + '[admin]\nbind = "10.0.0.4:8414"', [ADMIN.format("10.0.0.4:8414")]),
        (SHORT + '[admin]\nbind = "[::]:8414"', [ADMIN.format("[::]:8414")]),
        (SHORT + '[admin]\nbind = "127.9.9.9:8414"', []),
        (SHORT + '[admin]\nbind = "[::1]:8414"', []),
        (SHORT + '[admin]\nbind = ""', []),
        (SHORT + '[health]\nbind = ""', []),
        (
            SHORT + '[admin]\nbind = ""\n[health]\nbind = ""',
            ["admin.bind and health.bind: both empty, so neither a load balancer nor you can check relay's health"],
        ),
        # who stays for ever, who is cut off
        ("timeouts.client_hello = 0\n" + listener('"a.example:1"', 'sni = ["a.example"]'), [HELLO]),
        ("timeouts.client_hello = 0\n" + listener('"a.example:1"', 'proxy_protocol = "accept"'), [HELLO]),
        ("timeouts.client_hello = 0\n" + listener('"a.example:1"'), []),
        (SHORT + "timeouts.idle = 60.0", [IDLE.format(60, "mqtt")]),
        (SHORT + "timeouts.idle = 1767.0", []),
        (SHORT + "timeouts.idle = 0", []),
        ("timeouts.idle = 60\n" + listener('"a.example:443"'), []),
        ("timeouts.idle = 60\n" + listener(HUB) + listener(HUB, name="y", port=2), [IDLE.format(60, "{x, y}")]),
        (
            SHORT + "timeouts.idle = 0\ntcp.keepalive_idle = 0",
            ["timeouts.idle and tcp.keepalive_idle: both 0, so a peer that vanishes holds its connection for ever"],
        ),
        (SHORT + "tcp.keepalive_idle = 0", []),
        # networks
        (SHORT + '[access]\nallow = ["10.0.0.0/8"]\ndeny = ["10.1.0.0/16"]', []),
        (
            SHORT + '[access]\nallow = ["10.0.0.0/8", "::/0"]\ndeny = ["10.0.0.0/8"]',
            ["access.allow: 10.0.0.0/8: wholly in access.deny, which wins: no client from there is admitted"],
        ),
        (
            SHORT + '[access]\nallow = ["10.0.0.0/8", "fd00::/8"]\ndeny = ["10.0.0.0/9", "10.128.0.0/9"]',
            ["access.allow: 10.0.0.0/8: wholly in access.deny, which wins: no client from there is admitted"],
        ),
        (
            SHORT + '[access]\nallow = ["10.1.0.0/16", "fd00::1"]\ndeny = ["10.0.0.0/8", "fd00::/8"]',
            ["access.deny: covers all of access.allow, and deny wins: no client is admitted"],
        ),
        (
            SHORT + '[access]\nallow = ["::ffff:10.1.0.0/112", "::/0"]\ndeny = ["10.0.0.0/8"]',
            ["access.allow: 10.1.0.0/16: wholly in access.deny, which wins: no client from there is admitted"],
        ),
        (SHORT + '[access]\nallow = ["10.0.0.0/8"]\ndeny = ["::/0"]', []),
        (SHORT + '[access]\ndeny = ["10.0.0.0/8"]', []),
        # where it dials from
        (SOURCES.format('"10.0.0.4"') + listener('"a.example:1"'), []),
        (SOURCES.format('"fd00::4"') + listener('"10.9.9.9:1", "[fd00::9]:1"'), []),
        (
            SOURCES.format('"fd00::4"') + listener('"10.9.9.9:1"'),
            ["dial.source_addresses: fd00::4: unused: no upstream is IPv6"],
        ),
        (
            SOURCES.format('"127.0.0.1", "10.0.0.4"') + listener('"127.0.0.1:2", "10.9.9.9:1"'),
            [
                "dial.source_addresses: 127.0.0.1: loopback, from which 10.9.9.9 cannot be reached: every dial from it "
                "fails"
            ],
        ),
        (SOURCES.format('"127.0.0.1", "127.0.0.2"') + listener('"127.0.0.9:1", "localhost:1"'), []),
        (
            SOURCES.format('"10.0.0.4", "10.0.0.4"') + listener('"a.example:1"'),
            ["dial.source_addresses: 10.0.0.4: given twice; the second adds no source ports"],
        ),
        (
            SOURCES.format('"0.0.0.0"') + listener('"a.example:1"'),
            [
                "dial.source_addresses: 0.0.0.0: not an address that an upstream can answer; set one of this "
                "machine's, see `ip address`"
            ],
        ),
        # hubs
        (listener('"a.azure-devices.net:8883", "a.privatelink.azure-devices.net:8883"'), []),
        (listener('"a.example:8883", "b.example:8883"'), []),
        (listener('"a.azure-devices.net:8883"') + listener('"b.azure-devices.net:8883"', name="y", port=2), []),
        (
            listener('"a.azure-devices.net:8883", "b.azure-devices.net:8883"'),
            [HUBS.format("listeners.x", "a.azure-devices.net, b.azure-devices.net", 2)],
        ),
        (
            'upstream = ["a.azure-devices.net", "b.azure-devices.us", "c.azure-devices.cn"]',
            [
                HUBS.format(
                    "listeners.{https, mqtt, amqp}", "a.azure-devices.net, b.azure-devices.us, c.azure-devices.cn", 3
                )
            ],
        ),
        (
            listener(HUB, 'send_proxy_protocol = "v2"'),
            [
                "listeners.x.send_proxy_protocol: myhub.azure-devices.net is an IoT Hub, which refuses a PROXY header: "
                'set it to "off"'
            ],
        ),
        (listener('"proxy.example:1"', 'send_proxy_protocol = "v2"'), []),
        # routes
        (listener(HUB, ROUTE.format('"other.azure-devices.net:8883"')), []),
        (
            listener('"a.example:1"', ROUTE.format('"a.azure-devices.net:1", "b.azure-devices.net:1"')),
            [HUBS.format("listeners.x", "a.azure-devices.net, b.azure-devices.net", 2)],
        ),
        (
            listener('"a.example:1"', 'send_proxy_protocol = "v1"\n' + ROUTE.format(HUB)),
            [
                "listeners.x.send_proxy_protocol: myhub.azure-devices.net is an IoT Hub, which refuses a PROXY header: "
                'set it to "off"'
            ],
        ),
        ("timeouts.client_hello = 0.0\n" + listener('"a.example:1"', ROUTE.format('"b.example:1"')), [HELLO]),
        ("timeouts.client_hello = 0.0\n" + 'upstream = ["myhub.azure-devices.net"]', []),
        (
            "timeouts.idle = 60.0\n" + listener('"a.example:1"', ROUTE.format(HUB)),
            [IDLE.format(60, "x")],
        ),
        (
            "health_check.interval = 0.0\n" + listener('"a.example:1"', ROUTE.format('"b:1"') + 'backup = ["c:1"]'),
            [
                "health_check.interval: 0, so nothing finds out that an upstream is down, and the backup of x.r is "
                "used only while no name of its upstream resolves"
            ],
        ),
        (listener('"a.example:1"', ROUTE.format('"b:1"') + 'backup = ["c:1"]'), []),
    ],
)
def test_what_is_warned_of(load_text: Load, toml: str, warnings: list[str]) -> None:
    assert settings_warnings(load_text(toml)) == warnings


def test_thousands_of_networks_are_one_line(load_text: Load) -> None:
    networks = [f"10.{number // 250}.{number % 250}.0/24" for number in range(5000)]
    settings = load_text(SHORT)
    access = AccessSettings(allow=(*networks, "192.0.2.0/24"), deny=("10.0.0.0/8",))
    (line,) = settings_warnings(settings.model_copy(update={"access": access}))
    assert line.startswith("access.allow: 10.0.0.0/24, 10.0.1.0/24, ")
    assert "10.0.4.0/24 and 4995 more: wholly in access.deny" in line


# Networks that meet often: of 16 addresses of either family.
V4 = st.builds(
    lambda low, bits: ipaddress.ip_network((low, 32 - bits), strict=False), st.integers(0, 15), st.integers(0, 4)
)
V6 = st.builds(
    lambda low, bits: ipaddress.ip_network((ipaddress.IPv6Address(low), 128 - bits), strict=False),
    st.integers(0, 15),
    st.integers(0, 4),
)


@given(allow=st.lists(V4 | V6, min_size=1, max_size=6), deny=st.lists(V4 | V6, max_size=8))
def test_a_network_is_warned_of_exactly_if_nobody_of_it_is_let_in(
    allow: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    deny: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> None:
    access = AccessSettings(allow=tuple(map(str, allow)), deny=tuple(map(str, deny)))
    rules = AccessList(access.allow, access.deny)
    dead = [str(network) for network in allow if not any(rules.allows(address.packed) for address in network)]
    warnings = settings_warnings(Settings(access=access))
    if len(dead) == len(allow):
        assert warnings == ["access.deny: covers all of access.allow, and deny wins: no client is admitted"]
    elif dead:
        (line,) = warnings
        assert line.startswith("access.allow: ")
        v4 = [text for text in dead if ":" not in text]
        shown = [*v4, *(text for text in dead if ":" in text)][:5]
        assert line.removeprefix("access.allow: ").startswith(", ".join(shown))
    else:
        assert warnings == []
