"""[[customers]]: the spelling of networks, the rules over all customers, and that mistakes name file and line."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.customers import parse
from relay.settings.customers import Customer, Packed, network
from relay.settings.model import Settings, SettingsError, load
from tests.core.test_access_list import networks
from tests.core.test_customers import normal_network

Load = Callable[..., Settings]
Problems = Callable[..., list[str]]

SHORT = 'upstream = ["hub.example"]\n'
PROXY = (
    '[[listeners]]\nname = "mqtt"\nbind = ["0.0.0.0:8883"]\nupstream = ["hub.example:8883"]\n'
    'proxy_protocol = "require"\ntrusted_proxies = ["10.0.3.0/24"]\n'
)


def test_a_customer_with_everything(load_text: Load) -> None:
    settings = load_text(
        PROXY + '[[customers]]\nname = "contoso.co-1_a"\nnetworks = ["203.0.113.0/24", "2001:DB8::/32"]\n'
        "link_ids = [0, 4294967295]\nmax_connections = 7\nconnect_rate = 2.5\nconnect_burst = 3\n"
        'listeners = ["mqtt"]\n[[customers]]\nname = "fabrikam"\n'
    )
    contoso, fabrikam = settings.customers
    assert contoso.model_dump() == {
        "name": "contoso.co-1_a",
        "networks": ("203.0.113.0/24", "2001:db8::/32"),
        "link_ids": (0, 4294967295),
        "max_connections": 7,
        "connect_rate": 2.5,
        "connect_burst": 3,
        "listeners": ("mqtt",),
    }
    assert fabrikam.model_dump(exclude={"name"}) == {
        "networks": (),
        "link_ids": (),
        "max_connections": 0,
        "connect_rate": 0.0,
        "connect_burst": 0,
        "listeners": (),
    }


@given(networks(), st.booleans())
def test_every_network_has_one_spelling(given_one: ipaddress.IPv4Network | ipaddress.IPv6Network, long: bool) -> None:
    text = given_one.exploded if long else str(given_one)
    spelled = network(text)
    expected = normal_network(given_one)
    assert ipaddress.ip_network(spelled) == expected
    assert network(spelled) == spelled
    assert ("/" in spelled) == (expected.prefixlen < expected.max_prefixlen)
    assert parse(spelled) == parse(text) if not long else True


@pytest.mark.parametrize(
    "text",
    ["10.0.0.1/8", "256.0.0.0", "1.2.3.04", "1.2.3.4/33", "1.2.3.4/01", "1.2.3", "::1/64", "fe80::1%eth0", "hub", ""],
)
def test_what_is_no_network_is_a_mistake(problems: Problems, text: str) -> None:
    (problem,) = problems(SHORT + f'[[customers]]\nname = "a"\nnetworks = ["{text}"]\n')
    assert problem.startswith(f'customers[0].networks[0]: "{text}" ')


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('name = "Contoso"', 'customers[0].name: "Contoso" is not 1 to 64 of a-z, 0-9, -, _ and .'),
        ('name = ""', 'customers[0].name: "" is not 1 to 64'),
        (f'name = "{"a" * 65}"', "customers[0].name: "),
        (
            'name = "a"\nlink_ids = [4294967296]',
            "customers[0].link_ids[0]: 4294967296 is not a link id, 0 to 4294967295",
        ),
        ('name = "a"\nlink_ids = [-1]', "customers[0].link_ids[0]: -1 is not a link id"),
        ('name = "a"\nlink_ids = ["1"]', 'customers[0].link_ids[0]: "1" is not a whole number'),
        ('name = "a"\nlink_ids = 1', "customers[0].link_ids: 1 is not a list of whole numbers"),
        ('name = "a"\nconnect_rate = 0.0001', "customers[0].connect_rate: 0.0001 is less than 0.001"),
        ('name = "a"\nmax_connections = -1', "customers[0].max_connections: -1 is out of range (0 to 10000000)"),
        ('name = "a"\nlisteners = ["mqqt"]', 'customers[0].listeners[0]: "mqqt" is no listener; there is mqtt'),
        ('name = "a"\nnetwork = []', "customers[0].network: unknown setting; did you mean networks?"),
        ("networks = []", "customers[0].name: missing"),
    ],
)
def test_a_mistake_in_a_customer_names_the_customer(problems: Problems, line: str, problem: str) -> None:
    found = problems(PROXY + f"[[customers]]\n{line}\n")
    assert len(found) == 1
    assert re.sub(r" \(\S+ line \d+\)", "", found[0]).startswith(problem)


def test_link_ids_without_a_listener_that_learns_them_are_a_mistake(problems: Problems) -> None:
    (problem,) = problems(SHORT + '[[customers]]\nname = "a"\nlink_ids = [1, 2]\n')
    assert "no listener reads the PROXY headers that name link ids; set proxy_protocol" in problem


def test_the_short_forms_listeners_have_names_too(load_text: Load, problems: Problems) -> None:
    text = SHORT + '[[customers]]\nname = "a"\nlisteners = ["https", "mqtt", "amqp"]\n'
    assert load_text(text).customers[0].listeners == ("https", "mqtt", "amqp")
    (problem,) = problems(text.replace("amqp", "amqps"))
    assert '"amqps" is no listener; there are amqp, https, mqtt' in problem


def test_what_belongs_to_two_customers_names_both_places(tmp_path: Path) -> None:
    main = tmp_path / "relay.toml"
    main.write_text(
        'include = ["c/*.toml"]\n' + PROXY + '[[customers]]\nname = "contoso"\nnetworks = [\n  "10.0.0.0/8",\n]\n'
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.toml").write_text(
        '[[customers]]\nname = "fabrikam"\nlink_ids = [7]\n\n[[customers]]\nname = "contoso"\n'
    )
    (tmp_path / "c" / "b.toml").write_text(
        '[[customers]]\nname = "tailspin"\nlink_ids = [5, 7]\nnetworks = ["::ffff:10.0.0.0/104"]\n'
    )
    with pytest.raises(SettingsError) as raised:
        load(main, {})
    assert raised.value.problems == [
        f'customers[2].name (c/a.toml line 6): "contoso" is also the name of customers[0].name ({main} line 9); '
        "names are unique",
        f'customers[3].networks[0] (c/b.toml line 1): "10.0.0.0/8" is also customers[0].networks[0] ({main} line 11); '
        "a network belongs to one customer",
        "customers[3].link_ids[1] (c/b.toml line 3): 7 is also customers[1].link_ids[0] (c/a.toml line 3); "
        "a link id belongs to one customer",
    ]


def test_nested_networks_and_one_given_twice_by_its_owner_are_fine(load_text: Load) -> None:
    settings = load_text(
        SHORT + '[[customers]]\nname = "a"\nnetworks = ["10.0.0.0/8", "10.0.0.0/8"]\n'
        '[[customers]]\nname = "b"\nnetworks = ["10.1.0.0/16"]\n'
    )
    assert len(settings.customers) == 2


def test_another_mistake_does_not_hide_one_network_of_two(problems: Problems) -> None:
    found = problems(
        SHORT + 'workers = "4"\n[[customers]]\nname = "a"\nnetworks = ["10.0.0.0/8"]\n'
        '[[customers]]\nname = "b"\nnetworks = ["10.0.0.0/8", "nonsense"]\n'
    )
    assert len(found) == 3
    assert "a network belongs to one customer" in found[-1]


def test_the_environment_replaces_the_whole_list(load_text: Load) -> None:
    file = SHORT + '[[customers]]\nname = "a"\nnetworks = ["10.0.0.0/8"]\n'
    of_environment = {"RELAY_CUSTOMERS": json.dumps([{"name": "b", "networks": ["10.0.0.0/8"], "link_ids": []}])}
    assert [item.name for item in load_text(file, of_environment).customers] == ["b"]
    assert load_text(file, {"RELAY_CUSTOMERS": ""}).customers == ()


def test_a_mistake_of_the_environment_names_the_variable(problems: Problems) -> None:
    tables = [{"name": "a", "networks": ["10.0.0.0/8"]}, {"name": "b", "networks": ["10.0.0.0/8"]}]
    (problem,) = problems(SHORT, {"RELAY_CUSTOMERS": json.dumps(tables)})
    assert problem == (
        'RELAY_CUSTOMERS (customers[1].networks[0]): "10.0.0.0/8" is also RELAY_CUSTOMERS (customers[0].networks[0]); '
        "a network belongs to one customer"
    )


def test_more_customers_than_slots_are_a_mistake(problems: Problems) -> None:
    tables = [{"name": f"c{number}"} for number in range(16_385)]
    (problem,) = problems(SHORT, {"RELAY_CUSTOMERS": json.dumps(tables)})
    assert problem == "RELAY_CUSTOMERS (customers): 16385 customers; at most 16384"


def test_packed_customers_are_as_the_tuple_of_them(load_text: Load) -> None:
    rows = [f'[[customers]]\nname = "c{n}"\nnetworks = ["10.{n >> 8}.{n & 255}.0/24"]\n' for n in range(250)]
    packed: Sequence[Customer] = load_text(SHORT + "".join(rows)).customers
    assert isinstance(packed, Packed)
    plain = tuple(packed)
    assert all(isinstance(item, Customer) for item in plain)
    assert [item.name for item in plain] == [f"c{n}" for n in range(250)]
    assert plain[249].networks == ("10.0.249.0/24",)
    assert (len(packed), bool(packed), packed == plain, plain == packed) == (250, True, True, True)
    assert [packed[n] for n in range(-250, 250)] == [*plain, *plain]
    assert packed[99:201] == plain[99:201]
    with pytest.raises(IndexError):
        _ = packed[250]
    again = load_text(SHORT + "".join(rows)).customers
    assert (packed == again, packed != again) == (True, False)
    rows[120] += "max_connections = 1\n"
    assert load_text(SHORT + "".join(rows)).customers != packed


def test_a_reload_from_customers_to_none_lets_nobody_in_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SHORT + '[[customers]]\nname = "a"\n')
    before = load(path, {})
    path.write_text(SHORT)
    with pytest.raises(SettingsError, match=r"would remove the last of them, and with access\.allow empty"):
        load(path, {}, before=before)
    path.write_text(SHORT + '[access]\nallow = ["10.0.0.0/8"]\n')
    assert load(path, {}, before=before).customers == ()
