"""What stands in front and behind: load balancer, private endpoints, records, hub, gallery."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bicep.compiler import HUB, MAIN_FILES, SQL, ZONES, predict, predict_module, refusal

PORTS = {"https": 443, "mqtt": 8883, "amqp": 5671}
RECORDS = [
    "privatelink.azure-devices.net/myhub",
    "privatelink.azure-devices.net/myhub.device",
    "privatelink.azure-devices.net/myhub.service",
]


@pytest.mark.parametrize("name", MAIN_FILES)
def test_the_load_balancer_passes_all_three_ports_and_asks_readyz(name: str) -> None:
    made = predict(name)
    balancer = made.one("loadBalancers")
    assert balancer["sku"] == {"name": "Standard", "tier": "Regional"}
    (probe,) = balancer["properties"]["probes"]
    assert probe["properties"] == {
        "protocol": "Http",
        "port": 8080,
        "requestPath": "/readyz",
        "intervalInSeconds": 5,
        "probeThreshold": 2,
        "noHealthyBackendsBehavior": "AllProbedUp",
    }
    rules = {rule["name"]: rule["properties"] for rule in balancer["properties"]["loadBalancingRules"]}
    assert {rule: rules[rule]["frontendPort"] for rule in PORTS} == PORTS
    for rule in rules.values():
        assert rule["backendPort"] == rule["frontendPort"]
        assert rule["enableTcpReset"] is True
        assert rule["idleTimeoutInMinutes"] == 30
        assert rule["disableOutboundSnat"] is True
        assert rule["probe"]["id"] == f"{balancer['id']}/probes/readyz"
    # The set is in a pool that a rule has.
    machine = made.scale_set["virtualMachineProfile"]
    interface = machine["networkProfile"]["networkInterfaceConfigurations"][0]["properties"]
    pools = [
        pool["id"]
        for one in interface["ipConfigurations"]
        for pool in one["properties"].get("loadBalancerBackendAddressPools", [])
    ]
    assert {rule["backendAddressPool"]["id"].lower() for rule in rules.values()} == {pool.lower() for pool in pools}


@pytest.mark.parametrize("name", MAIN_FILES)
def test_addresses_are_static_and_in_all_zones(name: str) -> None:
    for address in predict(name).all("publicIPAddresses"):
        assert address["properties"]["publicIPAllocationMethod"] == "Static"
        assert address["zones"] == ["1", "2", "3"]


def test_ipv6_has_an_address_a_pool_and_rules_of_its_own() -> None:
    made = predict("production.bicepparam")
    balancer = made.one("loadBalancers")["properties"]
    assert [one["name"] for one in balancer["frontendIPConfigurations"]] == ["ipv4", "ipv6"]
    names = [rule["name"] for rule in balancer["loadBalancingRules"]]
    assert names == ["https", "mqtt", "amqp", "https-ipv6", "mqtt-ipv6", "amqp-ipv6"]
    versions = [
        one["properties"]["publicIPAddressVersion"]
        for one in made.all("publicIPAddresses")
        if "-out-" not in one["name"]
    ]
    assert versions == ["IPv4", "IPv6"]
    assert "fd40:0:0:1::/64" in str(made.one("virtualNetworks")["properties"]["subnets"][0])
    assert "loadBalancer.ipv6 needs network.ipv6" in refusal("minimal.bicepparam", loadBalancer={"ipv6": True})


def test_an_address_of_a_prefix() -> None:
    prefix = HUB.replace("Microsoft.Devices/IotHubs/myhub", "Microsoft.Network/publicIPPrefixes/p")
    made = predict("minimal.bicepparam", loadBalancer={"publicIpPrefixId": prefix})
    assert made.one("publicIPAddresses", "pip-relay")["properties"]["publicIPPrefix"] == {"id": prefix}


def test_an_outbound_rule_has_addresses_of_its_own() -> None:
    balancer = predict("development.bicepparam").one("loadBalancers")["properties"]
    (rule,) = balancer["outboundRules"]
    assert rule["properties"]["allocatedOutboundPorts"] == 8000
    assert [one["id"].rpartition("/")[2] for one in rule["properties"]["frontendIPConfigurations"]] == ["out-0"]
    used = {
        rule["properties"]["frontendIPConfiguration"]["id"].rpartition("/")[2]
        for rule in balancer["loadBalancingRules"]
    }
    assert used == {"ipv4"}


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [(64000, "192000 ports for the most instances, and the addresses have 64000."), (1001, "is a multiple of 8")],
)
def test_outbound_ports_that_there_are_not_are_refused(ports: int, sentence: str) -> None:
    assert sentence in refusal("minimal.bicepparam", outbound={"kind": "loadBalancer", "portsPerInstance": ports})


# --- private endpoints ------------------------------------------------------------------------------------------------


def test_one_endpoint_has_a_zone_group_for_all_its_names() -> None:
    made = predict("minimal.bicepparam")
    endpoint = made.one("privateEndpoints")
    (connection,) = endpoint["properties"]["privateLinkServiceConnections"]
    assert connection["properties"] == {"privateLinkServiceId": HUB, "groupIds": ["iotHub"]}
    (group,) = made.all("privateEndpoints/privateDnsZoneGroups")
    zones = [
        one["properties"]["privateDnsZoneId"].rpartition("/")[2] for one in group["properties"]["privateDnsZoneConfigs"]
    ]
    assert zones == ["privatelink.azure-devices.net", "privatelink.servicebus.windows.net"]
    assert made.all("privateDnsZones/A") == []


def test_several_endpoints_have_one_record_set_for_each_name_and_no_zone_group() -> None:
    made = predict("production.bicepparam", targets=[])
    assert [one["name"] for one in made.all("privateEndpoints")] == [f"pep-relay-hub-{index}" for index in range(3)]
    assert made.all("privateEndpoints/privateDnsZoneGroups") == []
    records = made.all("privateDnsZones/A")
    assert [one["name"] for one in records[:3]] == RECORDS
    assert len(records) == 4
    assert "privatelink.servicebus.windows.net" in records[3]["name"]  # its label is known to Azure alone
    for one in records:
        for index in range(3):  # the addresses of each endpoint are asked for
            assert f"pep-relay-hub-{index}'" in str(one["properties"]["aRecords"])


def configs(*addresses: str) -> list[dict[str, Any]]:
    names = ["myhub.azure-devices.net", "myhub.device.azure-devices.net", "myhub.service.azure-devices.net"]
    names.append("iothub-ns-myhub-1-abc.servicebus.windows.net")
    return [{"fqdn": name, "ipAddresses": [address]} for name, address in zip(names, addresses, strict=True)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_record_set_has_the_addresses_of_all_endpoints(count: int) -> None:
    endpoints = [configs(*(f"10.40.1.{4 * index + member}" for member in range(4))) for index in range(count)]
    made = predict_module(
        "modules/records.bicep",
        zoneName="privatelink.azure-devices.net",
        names=["myhub", "myhub.device", "myhub.service"],
        suffix="azure-devices.net",
        endpoints=endpoints,
    )
    found = {
        one["name"].partition("/")[2]: [record["ipv4Address"] for record in one["properties"]["aRecords"]]
        for one in made.all("privateDnsZones/A")
    }
    assert found == {
        "myhub": [f"10.40.1.{4 * index}" for index in range(count)],
        "myhub.device": [f"10.40.1.{4 * index + 1}" for index in range(count)],
        "myhub.service": [f"10.40.1.{4 * index + 2}" for index in range(count)],
    }


def test_zones_are_linked_to_relay_s_network_and_no_other() -> None:
    made = predict("production.bicepparam")
    links = made.all("privateDnsZones/virtualNetworkLinks")
    assert len(links) == len(made.all("privateDnsZones")) == 4
    for link in links:
        assert link["properties"]["virtualNetwork"]["id"] == made.one("virtualNetworks")["id"]
        assert link["properties"]["registrationEnabled"] is False
        # A zone hides every other hub from this network, unless what it does not have is asked for in public.
        assert link["properties"]["resolutionPolicy"] == "NxDomainRedirect"


def test_central_zones_are_written_into_and_not_made() -> None:
    made = predict("uniform.bicepparam")
    assert made.all("privateDnsZones") == []
    (group,) = made.all("privateEndpoints/privateDnsZoneGroups")
    zones = [one["properties"]["privateDnsZoneId"] for one in group["properties"]["privateDnsZoneConfigs"]]
    assert zones == [f"{ZONES}/privatelink.azure-devices.net", f"{ZONES}/privatelink.servicebus.windows.net"]
    assert len(made.all("privateDnsZones/virtualNetworkLinks")) == 2
    dns = {"kind": "existing", "hubZoneId": zones[0], "eventHubsZoneId": zones[1], "link": False}
    several = predict("uniform.bicepparam", privateEndpoints={"count": 2, "dns": dns})
    assert several.all("privateDnsZones/virtualNetworkLinks") == []
    assert all(one["id"].startswith("/subscriptions/11111111-") for one in several.all("privateDnsZones/A")[:3])


def test_no_records_are_written_where_a_policy_does_it() -> None:
    made = predict("minimal.bicepparam", privateEndpoints={"count": 2, "dns": {"kind": "none"}})
    assert not [one for one in made.resources if "DnsZone" in one["type"]]
    assert len(made.all("privateEndpoints")) == 2


def test_approval_by_hand() -> None:
    made = predict("minimal.bicepparam", privateEndpoints={"dns": {"kind": "new"}, "approvalMessage": "relay, please"})
    properties = made.one("privateEndpoints")["properties"]
    assert "privateLinkServiceConnections" not in properties
    (connection,) = properties["manualPrivateLinkServiceConnections"]
    assert connection["properties"]["requestMessage"] == "relay, please"
    assert "have them approved, and deploy again without approvalMessage" in refusal(
        "minimal.bicepparam", privateEndpoints={"count": 2, "dns": {"kind": "new"}, "approvalMessage": "relay, please"}
    )


def test_other_services_have_an_endpoint_a_zone_and_a_port() -> None:
    made = predict("minimal.bicepparam", targets=[{"name": "sql", "service": "sql", "id": SQL}])
    endpoint = made.one("privateEndpoints", "pep-relay-sql")
    assert endpoint["properties"]["privateLinkServiceConnections"][0]["properties"]["groupIds"] == ["sqlServer"]
    assert made.one("privateDnsZones", "privatelink.database.windows.net")
    own = {"name": "sql", "service": "sql", "id": SQL, "zoneId": f"{ZONES}/privatelink.database.windows.net"}
    central = predict("minimal.bicepparam", targets=[own])
    assert len(central.all("privateDnsZones")) == 2
    group = central.one("privateEndpoints/privateDnsZoneGroups", "pep-relay-sql/default")
    assert group["properties"]["privateDnsZoneConfigs"][0]["properties"]["privateDnsZoneId"] == own["zoneId"]


# --- hub and gallery --------------------------------------------------------------------------------------------------


def test_a_new_hub_is_closed_to_the_internet_unless_asked() -> None:
    hub = {"kind": "new", "name": "myhub", "sku": "S1", "units": 1}
    properties = predict("minimal.bicepparam", hub=hub).one("IotHubs")["properties"]
    assert properties["publicNetworkAccess"] == "Disabled"
    assert properties["minTlsVersion"] == "1.2"
    assert properties["disableLocalAuth"] is False
    assert "networkRuleSets" not in properties
    more = hub | {"publicNetworkAccess": "Enabled", "allowedNetworks": ["203.0.113.0/24"], "disableLocalAuth": True}
    properties = predict("minimal.bicepparam", hub=more).one("IotHubs")["properties"]
    assert properties["networkRuleSets"] == {
        "defaultAction": "Deny",
        "applyToBuiltInEventHubEndpoint": True,
        "ipRules": [{"filterName": "allow-0", "action": "Allow", "ipMask": "203.0.113.0/24"}],
    }
    assert properties["disableLocalAuth"] is True


def test_a_hub_that_is_there_is_not_changed() -> None:
    assert predict("minimal.bicepparam").all("IotHubs") == []


@pytest.mark.parametrize("architecture", ["x64", "Arm64"])
def test_an_image_definition_takes_what_packer_makes(architecture: str) -> None:
    made = predict("gallery.bicepparam", architectures=[architecture])
    properties = made.one("galleries/images")["properties"]
    assert properties["hyperVGeneration"] == "V2"
    assert properties["architecture"] == architecture
    assert properties["osState"] == "Generalized"
    assert {one["name"]: one["value"] for one in properties["features"]} == {
        "SecurityType": "TrustedLaunch",  # not TrustedLaunchSupported, which refuses versions made from a machine
        "IsAcceleratedNetworkSupported": "True",
        "DiskControllerTypes": "SCSI, NVMe",
    }


def test_the_gallery_is_where_the_scale_set_looks() -> None:
    gallery = predict("gallery.bicepparam")
    front = predict("minimal.bicepparam")
    assert gallery.outputs["definitionIds"] == [front.outputs["imageDefinitionId"]]
    image = front.scale_set["virtualMachineProfile"]["storageProfile"]["imageReference"]["id"]
    assert image == f"{front.outputs['imageDefinitionId']}/versions/0.1.0"
    assert gallery.outputs["packer"] == [{"resource_group": "rg-relay", "name": "gal_relay", "image": "relay-amd64"}]


def test_packer_may_publish_if_it_is_named() -> None:
    assert predict("gallery.bicepparam").all("roleAssignments") == []
    made = predict("gallery.bicepparam", packerPrincipalId="33333333-3333-3333-3333-333333333333")
    assert made.one("roleAssignments")["properties"]["principalId"] == "33333333-3333-3333-3333-333333333333"


@pytest.mark.parametrize("name", MAIN_FILES)
def test_no_secret_in_outputs_or_user_data(name: str) -> None:
    made = predict(name)
    assert set(made.outputs) == {
        "addresses",
        "hostNames",
        "scaleSetName",
        "imageDefinitionId",
        "identityClientId",
        "remoteWriteUrl",
        "relayToml",
    }
    for word in ("listkeys", "SharedAccess", "AccountKey", "password"):
        assert word.lower() not in str(made.snapshot).replace("disablePasswordAuthentication", "").lower()
