"""The effective settings as TOML, and the reference: both follow from the models."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from relay.address import format_hostport
from relay.core.destinations import why_never
from relay.settings.model import Listener, Settings, load, render
from relay.settings.reference import document
from relay.settings.schema import Kind, find, leaves_of, to_toml
from tests.support.programs import ROOT

Load = Callable[..., Settings]

PORTS = st.integers(1, 65535)
LITERALS = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
DIALLED = LITERALS.filter(lambda host: not why_never(host) and not ip_address(host).is_loopback)
HOSTS = st.one_of(DIALLED, st.from_regex(r"[a-z][a-z0-9_]{0,10}(\.[A-Za-z]{1,5}){1,3}\.?", fullmatch=True))
DURATIONS = st.floats(0, 31_536_000).map(abs)
IN_A_ROW = st.integers(1, 1000)
COUNTS = st.integers(0, 10_000_000)
UPSTREAMS = st.lists(st.builds(format_hostport, HOSTS, PORTS), min_size=1, max_size=3)
OF_A_LISTENER = ("access", "health_check", "timeouts")  # tables
BIND_OFF = st.just("")


@st.composite
def route_lists(draw: st.DrawFn, upstreams: st.SearchStrategy[list[str]]) -> list[dict[str, Any]]:
    """Up to three routes without a server name in common."""
    return [
        {
            "name": f"{number}.{draw(st.from_regex(r'[a-z0-9._-]{0,20}', fullmatch=True))}",
            "sni": [f"{draw(st.sampled_from(['', '*.']))}{number}.example"],
            "upstream": draw(upstreams),
            "optional": draw(st.booleans()),
        }
        for number in range(draw(st.integers(0, 3)))
    ]


NETWORKS = st.one_of(st.ip_addresses(v=4).map(str), st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "2001:DB8:0::/32"]))
ACCESS = st.fixed_dictionaries({}, optional=dict.fromkeys(("allow", "deny"), st.lists(NETWORKS, max_size=3)))
TIMEOUTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("client_hello", "idle", "half_close", "max_age"), DURATIONS),
        "max_age_jitter": st.floats(0, 1).map(abs),
    },
)


@st.composite
def listener_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to four listeners without an address in common: each has ports of its own."""
    names = draw(st.lists(st.from_regex(r"[a-z0-9_-]{1,32}", fullmatch=True), min_size=1, max_size=4, unique=True))
    health_check = draw(st.fixed_dictionaries({}, optional={"interval": DURATIONS, "rise": IN_A_ROW, "fall": IN_A_ROW}))
    return [
        {
            "name": name,
            "bind": [
                format_hostport(draw(LITERALS), 1000 * (index + 1) + offset)
                for offset in range(draw(st.integers(1, 3)))
            ],
            "upstream": draw(UPSTREAMS),
            "max_connections": draw(COUNTS),
            "proxy_protocol": draw(st.sampled_from(["off", "accept", "require"])),
            "send_proxy_protocol": draw(st.sampled_from(["off", "v1", "v2"])),
            "routes": draw(route_lists(UPSTREAMS)),
            # The same in all: they may have an upstream in common.
            "health_check": health_check,
            "timeouts": draw(TIMEOUTS),
            "access": draw(ACCESS),
        }
        for index, name in enumerate(names)
    ]


RATES = st.one_of(st.just(0.0), st.floats(0.001, 10_000_000))


@st.composite
def customer_lists(draw: st.DrawFn) -> str:
    """Customers without a network in common, in JSON."""
    names = draw(st.lists(st.from_regex(r"[a-z0-9_.-]{1,64}", fullmatch=True), max_size=4, unique=True))
    tables = [
        {
            "name": name,
            "networks": draw(st.sampled_from([[], [f"10.{number}.0.0/16", f"::FFFF:11.{number}.0.0/112"]])),
            "max_connections": draw(COUNTS),
            "connect_rate": draw(RATES),
            "connect_burst": draw(COUNTS),
        }
        for number, name in enumerate(names)
    ]
    return json.dumps(tables)


VARIABLES: dict[str, st.SearchStrategy[str]] = {
    "RELAY_WORKERS": st.integers(0, 256).map(str),
    "RELAY_ENGINE": st.sampled_from(["auto", "ring", "stream"]),
    "RELAY_LIMITS__MAX_CONNECTIONS": COUNTS.map(str),
    "RELAY_LIMITS__MAX_CONNECTIONS_PER_SOURCE": COUNTS.map(str),
    "RELAY_LIMITS__CONNECT_RATE_PER_SOURCE": RATES.map(repr),
    "RELAY_LIMITS__CONNECT_BURST_PER_SOURCE": st.integers(1, 10_000_000).map(str),
    "RELAY_LIMITS__ACCEPT_RATE": RATES.map(repr),
    "RELAY_LIMITS__HELD_BYTES": (st.just(0) | st.integers(1 << 20, 1 << 40)).map(str),
    "RELAY_LIMITS__SOURCE_PREFIX_V4": st.integers(1, 32).map(str),
    "RELAY_LIMITS__SOURCE_PREFIX_V6": st.integers(1, 128).map(str),
    "RELAY_ACCESS__ALLOW": st.lists(NETWORKS, max_size=3).map(",".join),
    "RELAY_ACCESS__DENY": st.lists(NETWORKS, max_size=3).map(",".join),
    "RELAY_DIAL__CONNECT_TIMEOUT": st.floats(0, 3600, exclude_min=True).map(repr),
    "RELAY_DIAL__TIMEOUT": DURATIONS.map(repr),
    "RELAY_DIAL__RATE": RATES.map(repr),
    "RELAY_DIAL__QUEUE": COUNTS.map(str),
    "RELAY_DIAL__QUEUE_TIMEOUT": DURATIONS.map(repr),
    "RELAY_DIAL__SOURCE_ADDRESSES": st.lists(LITERALS, max_size=3).map(",".join),
    "RELAY_DNS__NAMESERVERS": st.lists(LITERALS, max_size=3).map(",".join),
    "RELAY_DNS__MIN_TTL": st.floats(1, 300).map(repr),
    "RELAY_DNS__MAX_TTL": st.floats(300, 31_536_000).map(repr),
    "RELAY_DNS__HOLD": DURATIONS.map(repr),
    "RELAY_HEALTH_CHECK__INTERVAL": DURATIONS.map(repr),
    "RELAY_HEALTH_CHECK__RISE": st.integers(1, 1000).map(str),
    "RELAY_HEALTH_CHECK__FALL": st.integers(1, 1000).map(str),
    "RELAY_HEALTH_CHECK__TLS": st.just("false"),  # with true, a literal upstream is a mistake
    "RELAY_TIMEOUTS__CLIENT_HELLO": DURATIONS.map(repr),
    "RELAY_TIMEOUTS__IDLE": DURATIONS.map(repr),
    "RELAY_TIMEOUTS__HALF_CLOSE": DURATIONS.map(repr),
    "RELAY_TIMEOUTS__MAX_AGE": DURATIONS.map(repr),
    "RELAY_TIMEOUTS__MAX_AGE_JITTER": st.floats(0, 1).map(abs).map(repr),
    "RELAY_TCP__KEEPALIVE_IDLE": st.integers(0, 32767).map(str),
    "RELAY_TCP__KEEPALIVE_INTERVAL": st.integers(1, 32767).map(str),
    "RELAY_TCP__KEEPALIVE_COUNT": st.integers(1, 127).map(str),
    "RELAY_TCP__USER_TIMEOUT": st.floats(0, 2_147_483).map(abs).map(repr),
    "RELAY_DRAIN__ANNOUNCE": DURATIONS.map(repr),
    "RELAY_DRAIN__WINDOW": DURATIONS.map(repr),
    "RELAY_SUPERVISION__HANG_TIMEOUT": st.floats(0, 3600).map(abs).map(repr),
    "RELAY_ADMIN__BIND": st.one_of(BIND_OFF, LITERALS.map(lambda host: format_hostport(host, 60001))),
    "RELAY_ADMIN__HOSTS": st.lists(HOSTS, max_size=3).map(",".join),
    "RELAY_HEALTH__BIND": st.one_of(BIND_OFF, LITERALS.map(lambda host: format_hostport(host, 60002))),
    "RELAY_METRICS__CUSTOMERS": st.sampled_from(["true", "false"]),
    "RELAY_AZURE__SCHEDULED_EVENTS": st.sampled_from(["true", "false"]),
    "RELAY_AZURE__METADATA_URL": LITERALS.map(lambda host: f"http://{format_hostport(host, 80)}"),
    "RELAY_AZURE__SETTINGS_STATE": st.sampled_from(["", "/run/relay-settings/state.json", "/tmp/ä b.json"]),
    "RELAY_LOG__FORMAT": st.sampled_from(["json", "console"]),
    "RELAY_LOG__LEVEL": st.sampled_from(["debug", "info", "warning", "error"]),
    "RELAY_LOG__ACCESS": st.sampled_from(["true", "false"]),
    "RELAY_CUSTOMERS": customer_lists(),
}
TARGETS = st.one_of(
    st.builds(lambda hosts: {"RELAY_UPSTREAM": ",".join(hosts)}, st.lists(HOSTS, min_size=1, max_size=3)),
    st.builds(
        lambda hosts, routes: {"RELAY_UPSTREAM": ",".join(hosts), "RELAY_ROUTES": json.dumps(routes)},
        st.lists(HOSTS, min_size=1, max_size=3),
        route_lists(st.lists(HOSTS, min_size=1, max_size=3)),
    ),
    st.builds(lambda tables: {"RELAY_LISTENERS": json.dumps(tables)}, listener_lists()),
)


def reload(text: str) -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, {})


@settings(deadline=None, max_examples=60)  # no deadline: a loaded machine is not a defect
@given(st.fixed_dictionaries({}, optional=VARIABLES), TARGETS)
def test_rendered_settings_load_to_equal_settings(variables: dict[str, str], targets: dict[str, str]) -> None:
    loaded = load(None, variables | targets)
    text = render(loaded)
    assert reload(text) == loaded
    assert render(reload(text)) == text


def test_every_setting_is_a_variable_of_the_property_above() -> None:
    drawn = {*VARIABLES, "RELAY_UPSTREAM", "RELAY_ROUTES", "RELAY_LISTENERS", "RELAY_INCLUDE"}  # test_included.py
    assert drawn == {setting.variable for setting in leaves_of(Settings)}


def test_defaults_are_rendered_with_their_meaning_and_unit(load_text: Load) -> None:
    text = render(load_text('upstream = ["hub.example"]'))
    idle = "longest time that a connection may be silent in both directions, in seconds; 0 = no limit"
    assert f"\n# {idle} (0 to 31536000)\nidle = 3600.0\n" in text
    assert '# "json" = one JSON object per line, "console" = for reading at a terminal (json | console)\nformat' in text


def test_the_shorthand_is_rendered_as_what_it_stands_for(load_text: Load) -> None:
    values = tomllib.loads(render(load_text('upstream = ["hub.example"]')))
    assert values["upstream"] == []
    assert values["listeners"][1] == {
        "name": "mqtt",
        "bind": ["0.0.0.0:8883", "[::]:8883"],
        "upstream": ["hub.example:8883"],
        "sni": [],
        "proxy_protocol": "off",
        "trusted_proxies": [],
        "send_proxy_protocol": "off",
        "max_connections": 0,
    }


def test_settings_without_listeners_are_rendered_too() -> None:
    shown = load(None, {}, require_listeners=False)
    assert "listeners" not in tomllib.loads(render(shown))


def test_every_line_with_a_value_follows_a_comment(load_text: Load) -> None:
    lines = render(load_text('upstream = ["hub.example"]')).splitlines()
    values = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(values) > len(list(leaves_of(Settings)))
    assert all(lines[number - 1].startswith("# ") for number in values)


VALUES = st.one_of(st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, width=64))


@given(st.one_of(VALUES.filter(lambda value: value not in (float("inf"), float("-inf"))), st.lists(st.text())))
def test_values_are_written_as_toml(value: object) -> None:
    read = tomllib.loads(f"value = {to_toml(value)}")["value"]
    assert (read, type(read)) == (value, type(value))


def every_setting(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for setting in leaves_of(model):
        yield setting.name, setting.meaning
        if setting.kind is Kind.TABLES and setting.table is not None:
            yield from every_setting(setting.table)


def test_every_setting_has_a_meaning_in_one_line() -> None:
    for name, meaning in every_setting(Settings):
        assert meaning, name
        assert meaning.isprintable(), name
    values = {name for name, field in Listener.model_fields.items() if name not in OF_A_LISTENER}
    assert {name for name, _ in every_setting(Settings)} >= values


def test_a_setting_is_found_by_its_path_and_nothing_else_is() -> None:
    found = find(Settings, ("listeners", 2, "bind", 0))
    assert found is not None
    assert found.name == "bind"
    assert find(Settings, ("workers", "x")) is None
    assert find(Settings, ("listeners", 0, "x")) is None


def test_the_reference_is_current() -> None:
    reference = ROOT / "docs" / "configuration.md"
    assert reference.read_text(encoding="utf-8") == document(Settings), (
        "run: python -m relay.settings.reference > docs/configuration.md"
    )


def test_the_examples_in_the_reference_mean_the_same(load_text: Load) -> None:
    """What it says that `upstream` is short for is what `upstream` becomes."""
    blocks = document(Settings).split("```toml\n")[1:]
    short, listeners = (load_text(block.split("```")[0]) for block in blocks)
    assert short == listeners
