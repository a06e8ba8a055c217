"""Who gets in: security groups by the flows that they let through, subnets, and the ways out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bicep.compiler import HUB, MAIN_FILES, predict, refusal
from tests.bicep.flows import PROBE, lets_in

PORTS = (443, 8883, 5671)
NETWORK = {
    "kind": "new",
    "addressPrefix": "10.40.0.0/24",
    "relaySubnetPrefix": "10.40.0.0/26",
    "endpointSubnetPrefix": "10.40.0.64/28",
}
SPACES = {
    "minimal": "10.40.0.0/24",
    "development": "10.41.0.0/24",
    "production": "10.40.0.0/23",
    "uniform": "10.50.0.0/16",
}


def relay_group(name: str, **parameters: object) -> dict[str, Any]:
    made = predict(name, **parameters)
    return next(one for one in made.all("networkSecurityGroups") if one["name"].endswith("-relay"))


def prefixes(count: int) -> list[str]:
    return [f"{11 + index // 65536}.{index // 256 % 256}.{index % 256}.0/24" for index in range(count)]


@pytest.mark.parametrize("name", MAIN_FILES)
def test_nobody_gets_at_ssh_or_at_health_and_metrics_but_the_probe(name: str) -> None:
    space = SPACES[name.partition(".")[0]]
    group = relay_group(name)
    inside = space.split("/")[0].removesuffix("0") + "9"
    for address in ("203.0.113.7", "192.0.2.1", inside, "2001:db8:c0::1"):
        for port in (22, 8080, 8414, 80, 9100):
            assert not lets_in(group, address, port, space), (address, port)
    assert lets_in(group, PROBE, 8080, space)
    assert not lets_in(group, PROBE, 22, space)


@pytest.mark.parametrize(
    ("name", "clients", "strangers"),
    [
        ("minimal.bicepparam", ["203.0.113.7"], ["203.0.114.7", "192.0.2.1", "10.40.0.9"]),
        (
            "production.bicepparam",
            ["203.0.113.255", "198.51.100.127", "198.51.100.192", "2001:db8:c0:ffff::1"],
            ["198.51.100.128", "198.51.100.191", "2001:db8:c1::1", "192.0.2.1"],
        ),
        ("development.bicepparam", ["192.0.2.1", "203.0.113.7"], ["10.41.0.9"]),
        ("uniform.bicepparam", ["192.0.2.1", "203.0.113.7"], ["10.50.8.9"]),
    ],
)
def test_clients_reach_all_three_ports_and_strangers_none(name: str, clients: list[str], strangers: list[str]) -> None:
    space = SPACES[name.partition(".")[0]]
    group = relay_group(name)
    for port in PORTS:
        assert [address for address in clients if not lets_in(group, address, port, space)] == []
        assert [address for address in strangers if lets_in(group, address, port, space)] == []


def test_a_customer_of_both_families_has_a_rule_for_each() -> None:
    rules = {
        rule["name"]: rule["properties"] for rule in relay_group("production.bicepparam")["properties"]["securityRules"]
    }
    assert rules["customer-contoso-ipv4"]["sourceAddressPrefixes"] == ["203.0.113.0/24"]
    assert rules["customer-contoso-ipv6"]["sourceAddressPrefixes"] == ["2001:db8:c0::/48"]
    assert rules["customer-contoso-ipv4"]["destinationPortRanges"] == ["443", "8883", "5671"]


def test_metrics_are_for_the_virtual_network_if_asked() -> None:
    group = relay_group("minimal.bicepparam", relay={"metricsFromNetwork": True})
    assert lets_in(group, "10.40.0.9", 8414, "10.40.0.0/24")
    assert not lets_in(group, "203.0.113.7", 8414, "10.40.0.0/24")
    assert not lets_in(group, "10.40.0.9", 8080, "10.40.0.0/24")


def test_4000_prefixes_are_in_one_security_group_each_once() -> None:
    wanted = prefixes(4000)
    customers = [{"name": "a", "networks": wanted[:1]}, {"name": "b", "networks": wanted[1:]}]
    group = relay_group(
        "minimal.bicepparam",
        access={"kind": "securityGroup", "customers": customers},
        settingsSource={"blob": "https://myaccount.blob.core.windows.net/relay/relay.toml"},
    )
    given = [
        one
        for rule in group["properties"]["securityRules"]
        for one in rule["properties"].get("sourceAddressPrefixes", [])
    ]
    assert sorted(given) == sorted(wanted)
    for prefix in (wanted[0], wanted[-1]):
        assert lets_in(group, prefix.removesuffix("0/24") + "7", 8883, "10.40.0.0/24")


def test_4001_prefixes_are_refused_with_the_way_out() -> None:
    said = refusal(
        "minimal.bicepparam",
        access={"kind": "securityGroup", "customers": [{"name": "a", "networks": prefixes(4001)}]},
        settingsSource={"blob": "https://myaccount.blob.core.windows.net/relay/relay.toml"},
    )
    assert "access.customers: 4001 networks, and a security group takes 4,000 in all. Use access.kind relay" in said


def test_a_thousand_customers_are_refused_with_the_way_out() -> None:
    customers = [{"name": f"c{index}", "networks": [prefix]} for index, prefix in enumerate(prefixes(991))]
    said = refusal(
        "minimal.bicepparam",
        access={"kind": "securityGroup", "customers": customers},
        settingsSource={"blob": "https://myaccount.blob.core.windows.net/relay/relay.toml"},
    )
    assert "they need 991 rules, and a security group takes 1,000 in all. Use access.kind relay" in said


def test_10000_prefixes_are_relay_s_own_affair() -> None:
    made = predict(
        "minimal.bicepparam",
        access={"kind": "relay", "customers": [{"name": "a", "networks": prefixes(10_000)}]},
        settingsSource={"blob": "https://myaccount.blob.core.windows.net/relay/relay.toml"},
    )
    group = next(one for one in made.all("networkSecurityGroups") if one["name"].endswith("-relay"))
    assert lets_in(group, "192.0.2.1", 443, "10.40.0.0/24")
    assert "customers" not in made.toml


@pytest.mark.parametrize("name", MAIN_FILES)
def test_endpoints_take_traffic_of_relay_alone(name: str) -> None:
    made = predict(name)
    space = SPACES[name.partition(".")[0]]
    group = next(one for one in made.all("networkSecurityGroups") if one["name"].endswith("-endpoints"))
    relay = {"minimal": "10.40.0.9", "development": "10.41.0.9", "production": "10.40.0.9", "uniform": "10.50.8.9"}
    other = {"minimal": "10.40.0.200", "development": "10.41.0.99", "production": "10.40.1.9", "uniform": "10.50.1.1"}
    key = name.partition(".")[0]
    for port in PORTS:
        assert lets_in(group, relay[key], port, space)
        assert not lets_in(group, other[key], port, space)
        assert not lets_in(group, "203.0.113.7", port, space)


def subnets(name: str) -> dict[str, dict[str, Any]]:
    made = predict(name)
    found = {one["name"].rpartition("-")[2]: one["properties"] for one in made.all("virtualNetworks/subnets")}
    for network in made.all("virtualNetworks"):
        found |= {one["name"]: one["properties"] for one in network["properties"]["subnets"]}
    return found


@pytest.mark.parametrize("name", MAIN_FILES)
def test_subnets_have_their_security_group_and_no_default_way_out(name: str) -> None:
    found = subnets(name)
    assert set(found) == {"relay", "endpoints"}
    for kind, subnet in found.items():
        assert subnet["defaultOutboundAccess"] is False
        assert subnet["networkSecurityGroup"]["id"].endswith(f"-{kind}")
    assert found["endpoints"]["privateEndpointNetworkPolicies"] == "NetworkSecurityGroupEnabled"
    assert ("natGateway" in found["relay"]) == (name != "development.bicepparam")
    assert "natGateway" not in found["endpoints"]


def test_no_outbound_makes_no_way_out() -> None:
    made = predict("minimal.bicepparam", outbound={"kind": "none"})
    assert made.all("natGateways") == []
    assert made.one("loadBalancers")["properties"]["outboundRules"] == []


def test_flow_logs_of_a_new_network_if_asked() -> None:
    account = HUB.replace("Microsoft.Devices/IotHubs/myhub", "Microsoft.Storage/storageAccounts/mylogs")
    made = predict("minimal.bicepparam", flowLogs={"storageAccountId": account, "retentionDays": 7})
    log = made.one("networkWatchers/flowLogs")
    assert "/resourceGroups/NetworkWatcherRG/" in log["id"]
    assert log["properties"]["targetResourceId"] == made.one("virtualNetworks")["id"]
    assert log["properties"]["storageId"] == account
    assert log["properties"]["retentionPolicy"] == {"enabled": True, "days": 7}
    assert predict("minimal.bicepparam").all("networkWatchers/flowLogs") == []
    assert "Leave flowLogs out" in refusal("uniform.bicepparam", flowLogs={"storageAccountId": account})


@pytest.mark.parametrize(
    ("sku", "more", "zones"),
    [("StandardV2", {}, ["1", "2", "3"]), ("Standard", {"zone": "2"}, ["2"]), ("Standard", {}, [])],
)
def test_a_nat_gateway_and_its_addresses_are_of_one_sku_and_zone(
    sku: str, more: dict[str, str], zones: list[str]
) -> None:
    made = predict("minimal.bicepparam", outbound={"kind": "natGateway", "sku": sku, "addresses": 2, **more})
    gateway = made.one("natGateways")
    addresses = [one for one in made.all("publicIPAddresses") if "-out-" in one["name"]]
    assert len(addresses) == 2
    assert {one["sku"]["name"] for one in [gateway, *addresses]} == {sku}
    assert [one.get("zones", []) for one in [gateway, *addresses]] == [zones] * 3
    assert [one["id"] for one in gateway["properties"]["publicIpAddresses"]] == [one["id"] for one in addresses]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"endpointSubnetPrefix": "10.40.0.32/28"},
            "network.relaySubnetPrefix 10.40.0.0/26 and network.endpointSubnetPrefix 10.40.0.32/28 overlap.",
        ),
        (
            {"endpointSubnetPrefix": "10.40.1.0/28"},
            "network.endpointSubnetPrefix 10.40.1.0/28 is not inside network.addressPrefix 10.40.0.0/24.",
        ),
        (
            {"relaySubnetPrefix": "10.0.0.0/8"},
            "network.relaySubnetPrefix 10.0.0.0/8 is not inside network.addressPrefix 10.40.0.0/24.",
        ),
        (
            {"endpointSubnetPrefix": "10.40.0.64/29"},
            "network.endpointSubnetPrefix 10.40.0.64/29 has 8 addresses and needs 9: four for each endpoint of the hub",
        ),
        (
            {"relaySubnetPrefix": "10.40.0.0/29"},
            "",  # three instances and five that Azure keeps: just enough
        ),
        (
            {"relaySubnetPrefix": "10.40.0.0/30"},
            "network.relaySubnetPrefix 10.40.0.0/30 has 4 addresses and needs 8",
        ),
    ],
)
def test_subnets_that_do_not_fit_are_refused(change: dict[str, str], sentence: str) -> None:
    if not sentence:
        predict("minimal.bicepparam", network=NETWORK | change)
        return
    assert sentence in refusal("minimal.bicepparam", network=NETWORK | change)


@pytest.mark.parametrize(
    ("count", "prefix", "fits"), [(2, "10.40.0.64/28", True), (3, "10.40.0.64/28", False), (6, "10.40.0.64/27", True)]
)
def test_the_endpoints_subnet_has_four_addresses_for_each(count: int, prefix: str, fits: bool) -> None:
    parameters = {
        "network": NETWORK | {"endpointSubnetPrefix": prefix},
        "privateEndpoints": {"count": count, "dns": {"kind": "new"}},
    }
    if fits:
        assert len(predict("minimal.bicepparam", **parameters).all("privateEndpoints")) == count
    else:
        assert f"has 16 addresses and needs {4 * count + 5}" in refusal("minimal.bicepparam", **parameters)


def test_all_mistakes_are_said_together() -> None:
    said = refusal(
        "minimal.bicepparam",
        network=NETWORK | {"relaySubnetPrefix": "10.40.0.0/30"},
        access={
            "kind": "securityGroup",
            "customers": [{"name": "Contoso", "networks": ["192.0.2.0/24", "192.0.2.0/24"]}],
        },
    )
    assert "network.relaySubnetPrefix" in said
    assert "a name has something other than a-z" in said
    assert "a network is there twice" in said
