"""The scale set in both modes: what Azure demands of each, upgrades, recovery, and capacity over a redeployment."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any

import pytest

from tests.bicep.compiler import MAIN_FILES, Prediction, evaluate, predict, refusal

FLEXIBLE: dict[str, Any] = {
    "kind": "flexible",
    "imageVersion": "1.4.0",
    "sizes": ["Standard_D2as_v5"],
    "instances": 3,
    "priority": {"kind": "spot"},
    "recovery": {"kind": "restore"},
    "osDisk": {"kind": "managed", "storage": "StandardSSD_LRS"},
}
AUTOSCALE = {"kind": "autoscale", "minimum": 2, "maximum": 8}
REGULAR = {"kind": "regular", "upgrade": "surge"}
SIZES = ["Standard_D2as_v5", "Standard_D2s_v5"]


def flexible(**change: object) -> Prediction:
    return predict("minimal.bicepparam", scaleSet=FLEXIBLE | change)


def profile(made: Prediction) -> dict[str, Any]:
    return dict(made.scale_set["virtualMachineProfile"])


@pytest.mark.parametrize("name", MAIN_FILES)
def test_every_set_has_what_azure_demands(name: str) -> None:
    made = predict(name)
    for one in made.all("virtualMachineScaleSets"):
        properties = one["properties"]
        machine = properties["virtualMachineProfile"]
        flexible_mode = properties["orchestrationMode"] == "Flexible"
        assert one["identity"]["type"] == "UserAssigned"
        assert list(one["identity"]["userAssignedIdentities"]) == [made.one("userAssignedIdentities")["id"]]
        assert properties["singlePlacementGroup"] is False
        assert properties["platformFaultDomainCount"] == 1
        assert properties["zoneBalance"] is False
        assert one["zones"] == ["1", "2", "3"]
        network = machine["networkProfile"]
        assert ("networkApiVersion" in network) == flexible_mode  # Uniform refuses it, even as null
        assert ("overprovision" in properties) == (not flexible_mode)
        (interface,) = network["networkInterfaceConfigurations"]
        assert interface["properties"]["enableAcceleratedNetworking"] is True
        primaries = [ip for ip in interface["properties"]["ipConfigurations"] if ip["properties"]["primary"]]
        assert [ip["properties"]["privateIPAddressVersion"] for ip in primaries] == ["IPv4"]
        assert not [
            ip
            for ip in interface["properties"]["ipConfigurations"]
            if "publicIPAddressConfiguration" in ip["properties"]
        ]
        assert machine["securityProfile"] == {
            "securityType": "TrustedLaunch",
            "uefiSettings": {"secureBootEnabled": True, "vTpmEnabled": True},
        }
        linux = machine["osProfile"]["linuxConfiguration"]
        assert linux["disablePasswordAuthentication"] is True
        assert linux["ssh"]["publicKeys"][0]["keyData"].startswith("ssh-")
        assert "customData" not in machine["osProfile"]  # reaches a running instance only by a reimage
        assert "encryptionAtHost" not in machine["securityProfile"]  # fails until the feature is registered


@pytest.mark.parametrize("name", MAIN_FILES)
def test_the_health_extension_is_in_the_model_and_the_only_source_of_health(name: str) -> None:
    made = predict(name)
    assert made.all("virtualMachineScaleSets/extensions") == []
    for one in made.all("virtualMachineScaleSets"):
        machine = one["properties"]["virtualMachineProfile"]
        assert "healthProbe" not in machine["networkProfile"]
        (health,) = [
            extension["properties"]
            for extension in machine["extensionProfile"]["extensions"]
            if extension["properties"]["type"] == "ApplicationHealthLinux"
        ]
        assert health["typeHandlerVersion"] == "2.0"
        assert health["settings"] == {
            "protocol": "http",
            "port": 8080,
            "requestPath": "/healthz",
            "intervalInSeconds": 5,
            "numberOfProbes": 3,
            "gracePeriod": 600,
        }
        repairs = one["properties"]["automaticRepairsPolicy"]
        assert repairs == {"enabled": True, "gracePeriod": "PT10M", "repairAction": "Replace"}


def test_flexible_spot_rolls_in_place_with_a_notice_before_a_reimage() -> None:
    made = flexible()
    assert made.scale_set["orchestrationMode"] == "Flexible"
    machine = profile(made)
    assert machine["priority"] == "Spot"
    assert machine["evictionPolicy"] == "Delete"
    assert machine["billingProfile"] == {"maxPrice": -1}
    # No notice before a deletion: Azure refuses it on Spot.
    assert machine["scheduledEventsProfile"] == {
        "osImageNotificationProfile": {"enable": True, "notBeforeTimeout": "PT15M"}
    }
    upgrade = made.scale_set["upgradePolicy"]
    assert upgrade["mode"] == "Rolling"
    assert "automaticOSUpgradePolicy" not in upgrade  # not in Flexible
    assert "maxSurge" not in upgrade["rollingUpgradePolicy"]
    assert "rollbackFailedInstancesOnPolicyBreach" not in upgrade["rollingUpgradePolicy"]
    assert machine["storageProfile"]["imageReference"]["id"].endswith("/images/relay-amd64/versions/1.4.0")


def test_flexible_regular_surges_with_a_notice_before_a_deletion() -> None:
    made = flexible(priority=REGULAR, recovery={"kind": "none"})
    machine = profile(made)
    assert machine["priority"] == "Regular"
    assert not {"evictionPolicy", "billingProfile"} & set(machine)
    assert machine["scheduledEventsProfile"]["terminateNotificationProfile"] == {
        "enable": True,
        "notBeforeTimeout": "PT15M",
    }
    assert made.scale_set["upgradePolicy"]["rollingUpgradePolicy"]["maxSurge"] is True
    assert not {"spotRestorePolicy", "priorityMixPolicy"} & set(made.scale_set)


def test_a_base_of_regular_instances_is_a_priority_mix() -> None:
    made = flexible(priority={"kind": "spot", "regularBase": 2, "regularPercentageAboveBase": 25, "maxPrice": "0.05"})
    assert made.scale_set["priorityMixPolicy"] == {
        "baseRegularPriorityCount": 2,
        "regularPriorityPercentageAboveBase": 25,
    }
    assert profile(made)["billingProfile"] == {"maxPrice": 0.05}


def test_several_sizes_are_a_mix() -> None:
    made = flexible(sizes=SIZES, allocation="LowestPrice")
    assert made.one("virtualMachineScaleSets")["sku"] == {"name": "Mix", "capacity": 3}
    assert made.scale_set["skuProfile"] == {
        "vmSizes": [{"name": size} for size in SIZES],
        "allocationStrategy": "LowestPrice",
    }
    alone = flexible()
    assert alone.one("virtualMachineScaleSets")["sku"] == {"name": SIZES[0], "tier": "Standard", "capacity": 3}
    assert "skuProfile" not in alone.scale_set


def test_uniform_takes_the_latest_version_by_itself() -> None:
    made = predict("uniform.bicepparam")
    both = [one["properties"] for one in made.all("virtualMachineScaleSets")]
    assert [one["virtualMachineProfile"]["priority"] for one in both] == ["Spot", "Regular"]
    for one in both:
        assert one["orchestrationMode"] == "Uniform"
        assert one["upgradePolicy"]["automaticOSUpgradePolicy"] == {
            "enableAutomaticOSUpgrade": True,
            "useRollingUpgradePolicy": True,
            "disableAutomaticRollback": False,
        }
        assert one["upgradePolicy"]["rollingUpgradePolicy"]["rollbackFailedInstancesOnPolicyBreach"] is True
        # The definition, without a version: only then is there a latest one.
        assert one["virtualMachineProfile"]["storageProfile"]["imageReference"]["id"].endswith("/images/relay-amd64")
        assert not {"priorityMixPolicy", "skuProfile"} & set(one)
    notices = [set(one["virtualMachineProfile"]["scheduledEventsProfile"]) for one in both]
    assert notices == [{"osImageNotificationProfile"}, {"osImageNotificationProfile", "terminateNotificationProfile"}]
    pools = [
        one["virtualMachineProfile"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"][
            "ipConfigurations"
        ][0]["properties"]["loadBalancerBackendAddressPools"]
        for one in both
    ]
    assert pools[0] == pools[1]
    assert both[0]["spotRestorePolicy"] == {"enabled": True, "restoreTimeout": "PT2H"}


def test_restore_or_autoscale_never_both() -> None:
    restored = flexible()
    assert restored.scale_set["spotRestorePolicy"] == {"enabled": True, "restoreTimeout": "PT1H"}
    assert restored.all("autoscaleSettings") == []
    scaled = flexible(recovery=AUTOSCALE)
    assert "spotRestorePolicy" not in scaled.scale_set
    (settings,) = scaled.all("autoscaleSettings")
    (scale_profile,) = settings["properties"]["profiles"]
    assert scale_profile["capacity"] == {"minimum": "2", "maximum": "8", "default": "2"}
    rules = [
        (rule["metricTrigger"]["metricName"], rule["metricTrigger"]["operator"], rule["scaleAction"]["direction"])
        for rule in scale_profile["rules"]
    ]
    assert rules == [
        ("Percentage CPU", "GreaterThan", "Increase"),
        ("Inbound Flows", "GreaterThan", "Increase"),
        ("Percentage CPU", "LessThan", "Decrease"),
        ("Inbound Flows", "LessThan", "Decrease"),
    ]
    said = refusal(
        "minimal.bicepparam", scaleSet=FLEXIBLE | {"recovery": {"kind": "restore", "minimum": 2, "maximum": 8}}
    )
    assert "minimum" in said  # a property of the other kind does not compile


def test_a_redeployment_keeps_the_capacity_of_autoscale() -> None:
    made = predict("minimal.bicepparam", scaleSet=FLEXIBLE | {"recovery": AUTOSCALE}, existingCapacity=7)
    assert made.one("virtualMachineScaleSets")["sku"]["capacity"] == 7
    first = predict("minimal.bicepparam", scaleSet=FLEXIBLE | {"recovery": AUTOSCALE})
    assert first.one("virtualMachineScaleSets")["sku"]["capacity"] == 3


def test_secondary_addresses_are_in_no_pool() -> None:
    made = predict("minimal.bicepparam", secondaryAddresses=2)
    (interface,) = profile(made)["networkProfile"]["networkInterfaceConfigurations"]
    addresses = {one["name"]: one["properties"] for one in interface["properties"]["ipConfigurations"]}
    assert set(addresses) == {"ipv4", "source-0", "source-1"}
    assert len(addresses["ipv4"]["loadBalancerBackendAddressPools"]) == 1
    assert not [one for name, one in addresses.items() if name != "ipv4" and "loadBalancerBackendAddressPools" in one]


def test_an_ephemeral_disk_is_local() -> None:
    disk = profile(flexible(osDisk={"kind": "ephemeral", "placement": "NvmeDisk"}))["storageProfile"]["osDisk"]
    assert disk["diffDiskSettings"] == {"option": "Local", "placement": "NvmeDisk"}
    assert disk["caching"] == "ReadOnly"


# Azure does not say how it rounds; it takes one instance at least.
ROUNDINGS: dict[str, Callable[[float], int]] = {"down": floor, "nearest": round, "up": ceil}


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_percentages_of_an_upgrade_mean_the_wanted_instances(rounding: str) -> None:
    names = ("batchInstances", "batchPercent", "toleratedInstances", "unhealthyPercent")
    expression = f"map(range(1, 20), n => [n, {', '.join(f'{name}(n)' for name in names)}])"
    rows = evaluate(expression, *names)
    assert [row[0] for row in rows] == list(range(1, 21))
    for capacity, batch, batch_percent, tolerated, unhealthy_percent in rows:
        assert batch == max(1, capacity // 5)
        assert 5 <= batch_percent <= 100
        assert 5 <= unhealthy_percent <= 100
        taken = max(1, ROUNDINGS[rounding](capacity * batch_percent / 100))
        assert taken <= batch, "more at once than wanted"
        assert taken >= batch - 1
        # Azure stops if the share of unhealthy instances, those of the batch included, is above the percentage.
        assert tolerated / capacity * 100 <= unhealthy_percent, "the batch itself would stop the upgrade"
        if capacity > 2:
            assert (batch + 1) / capacity * 100 <= unhealthy_percent, "one evicted instance would stop the upgrade"
            assert unhealthy_percent < 100, "an upgrade that takes all of them down would go on"
        assert (tolerated + 1) / capacity * 100 > unhealthy_percent


@pytest.mark.parametrize(
    ("instances", "batch", "unhealthy"), [(1, 100, 100), (2, 50, 50), (3, 33, 67), (6, 16, 34), (20, 20, 25)]
)
def test_a_set_has_the_percentages_of_its_capacity(instances: int, batch: int, unhealthy: int) -> None:
    policy = flexible(instances=instances).scale_set["upgradePolicy"]["rollingUpgradePolicy"]
    assert policy["maxBatchInstancePercent"] == batch
    assert policy["maxUnhealthyInstancePercent"] == unhealthy
    assert policy["maxUnhealthyUpgradedInstancePercent"] == 20
    assert policy["pauseTimeBetweenBatches"] == "PT1M"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"sizes": SIZES, "osDisk": {"kind": "ephemeral", "placement": "CacheDisk"}},
            "scaleSet.osDisk: several sizes (an instance mix) cannot have an ephemeral disk.",
        ),
        ({"sizes": ["Standard_B2s"]}, "scaleSet.sizes: B sizes are never Spot."),
        ({"sizes": [*SIZES, SIZES[0]]}, "scaleSet.sizes: a size is there twice."),
        ({"imageVersion": "1.4.0-rc1"}, "scaleSet.imageVersion is three integers"),
        ({"imageVersion": "1.4.0.1"}, "scaleSet.imageVersion is three integers"),
        ({"recovery": {"kind": "autoscale", "minimum": 5, "maximum": 4}}, "minimum is above maximum."),
        ({"instances": 9, "recovery": AUTOSCALE}, "9 instances are not between minimum and maximum"),
        ({"priority": {"kind": "regular"}}, "scaleSet.recovery: restore is for Spot."),
        ({"priority": {"kind": "spot", "upgrade": "surge"}}, '"upgrade"'),
        ({"sizes": [f"Standard_D{n}s_v5" for n in range(6)]}, "6"),
    ],
)
def test_what_azure_would_refuse_is_refused_with_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("minimal.bicepparam", scaleSet=FLEXIBLE | change)


def test_a_capacity_is_for_a_scaled_set_only() -> None:
    assert "existingCapacity is for a set that is scaled automatically" in refusal(
        "minimal.bicepparam", scaleSet=FLEXIBLE, existingCapacity=4
    )
