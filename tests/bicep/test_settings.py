"""User data: relay.toml as the template writes it, read by relay itself."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from relay.settings.model import Settings
from tests.bicep.compiler import DPS, MAIN_FILES, NAMESPACE, SQL, Prediction, predict, refusal
from tests.support.programs import RELAY, START, environment

# Tables of the template that this relay may not know yet: they are taken out before it reads the rest. The last one is
# for `relay fetch-settings`, which takes it out as well.
COMING = {"customers", "routes", "settings_source"} - set(Settings.model_fields)


def tables(made: Prediction) -> dict[str, Any]:
    return tomllib.loads(made.toml)


def known(toml: str) -> str:
    """The part of the text whose tables this relay knows."""
    kept = []
    inside = False
    for line in toml.splitlines():
        if line.startswith("["):
            inside = line.strip("[]") in COMING
        if not inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


@pytest.mark.parametrize("name", MAIN_FILES)
@pytest.mark.parametrize("targets", [None, "sql"])
def test_relay_accepts_its_settings(name: str, targets: str | None, tmp_path: Path) -> None:
    more = {"targets": [{"name": "sql", "service": "sql", "id": SQL}]} if targets else {}
    text = predict(name, **more).toml
    given = tomllib.loads(text)
    file = tmp_path / "relay.toml"
    file.write_text(known(text))
    left = tomllib.loads(known(text))
    assert {name for name in given if name not in left} <= COMING
    if targets and "routes" in COMING:
        assert all("routes" in one for one in given["listeners"] if one["name"] != "sql")
        file.write_text(without_routes(known(text)))
    done = subprocess.run(
        [*RELAY, "config", "--config", file], env=environment(), capture_output=True, text=True, timeout=START
    )
    assert done.returncode == 0, done.stderr
    effective = tomllib.loads(done.stdout)
    assert effective["azure"]["scheduled_events"] is True
    ports = {one["bind"][0].rpartition(":")[2] for one in effective["listeners"]}
    assert ports == {"443", "8883", "5671"} | ({"1433"} if targets else set())
    done = subprocess.run(
        [*RELAY, "check", "--config", file], env=environment(), capture_output=True, text=True, timeout=START
    )
    assert done.returncode != 2, done.stderr  # 1: this machine has not these ports free


def without_routes(toml: str) -> str:
    """The text without the routes of its listeners."""
    kept = []
    inside = False
    for line in toml.splitlines():
        if line.startswith("["):
            inside = line == "[[listeners.routes]]"
        if not inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


def test_customers_are_those_of_the_security_group() -> None:
    assert tables(predict("production.bicepparam"))["customers"] == [
        {
            "name": "contoso",
            "networks": ["203.0.113.0/24", "2001:db8:c0::/48"],
            "max_connections": 20000,
            "connect_rate": 100.0,
            "connect_burst": 500,
        },
        {"name": "fabrikam", "networks": ["198.51.100.0/25", "198.51.100.192/26"], "listeners": ["mqtt"]},
    ]


def test_targets_are_routes_by_name() -> None:
    routes = tables(predict("production.bicepparam"))["routes"]
    assert [(one["name"], one["sni"], one["listeners"]) for one in routes] == [
        ("provisioning", ["mydps.azure-devices-provisioning.net"], ["https", "mqtt", "amqp"]),
        ("uploads", ["myuploads.blob.core.windows.net"], ["https"]),
    ]
    assert all(one["upstream"] == one["sni"] for one in routes)


def test_sql_has_a_listener_of_its_own_and_so_the_others_are_written_out() -> None:
    targets = [
        {"name": "sql", "service": "sql", "id": SQL},
        {"name": "events", "service": "eventHubs", "id": NAMESPACE},
        {"name": "dps", "service": "provisioning", "id": DPS},
    ]
    made = predict("minimal.bicepparam", targets=targets)
    listeners = {one["name"]: one for one in tables(made)["listeners"]}
    assert list(listeners) == ["https", "mqtt", "amqp", "sql"]
    assert listeners["sql"]["upstream"] == ["mysql.database.windows.net:1433"]
    assert listeners["sql"]["bind"] == ["0.0.0.0:1433", "[::]:1433"]
    hosts = {name: [route["upstream"] for route in one.get("routes", [])] for name, one in listeners.items()}
    assert hosts["mqtt"] == [
        ["myhub.device.azure-devices.net:8883"],
        ["mydps.azure-devices-provisioning.net:8883"],
    ]
    assert hosts["amqp"] == [
        ["myhub.device.azure-devices.net:5671"],
        ["myevents.servicebus.windows.net:5671"],
        ["mydps.azure-devices-provisioning.net:5671"],
    ]
    assert "upstream" not in tables(made)
    assert made.scale_set["virtualMachineProfile"]["userData"]
    rules = {
        one["name"]: one["properties"]["frontendPort"]
        for one in made.one("loadBalancers")["properties"]["loadBalancingRules"]
    }
    assert rules == {"https": 443, "mqtt": 8883, "amqp": 5671, "sql": 1433}


def test_the_dial_rate_of_a_new_hub_is_its_throttle_over_all_instances() -> None:
    hub = {"kind": "new", "name": "myhub", "sku": "S2", "units": 3}
    assert tables(predict("minimal.bicepparam", hub=hub))["dial"]["rate"] == 120.0
    assert "dial" not in tables(predict("minimal.bicepparam"))  # nobody knows the tier of a hub that is there


def test_a_blob_takes_the_place_of_the_settings() -> None:
    source = {
        "blob": "https://myaccount.blob.core.windows.net/relay/relay.toml",
        "percentage": 10,
        "canaryTag": "ring:canary",
    }
    made = predict("production.bicepparam", settingsSource=source)
    assert tables(made) == {"settings_source": {"blob": source["blob"], "percentage": 10, "canary_tag": "ring:canary"}}
    whole = tomllib.loads(made.outputs["relayToml"])
    assert whole["upstream"] == ["myhub.azure-devices.net"]
    assert "customers" not in whole


def test_a_part_of_the_fleet_may_take_settings_first() -> None:
    made = tables(predict("minimal.bicepparam", settingsSource={"percentage": 10}))
    assert made["settings_source"] == {"percentage": 10}
    assert made["upstream"]


def many(count: int) -> dict[str, Any]:
    networks = [f"11.{index // 256}.{index % 256}.0/24" for index in range(count)]
    return {"kind": "securityGroup", "customers": [{"name": "a", "networks": networks}]}


def test_settings_above_48_kib_are_refused_with_the_way_out() -> None:
    assert len(predict("minimal.bicepparam", access=many(3000)).toml) < 49_152
    said = refusal("minimal.bicepparam", access=many(3900))
    assert "bytes, and user data has room for 48 KiB of them. Set settingsSource.blob" in said


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            {"settingsSource": {"blob": "https://a.blob.core.windows.net/relay/relay.toml?sig=x"}},
            "settingsSource.blob is a URL that begins with https:// and has no signature",
        ),
        (
            {"settingsSource": {"blob": "https://a.blob.core.windows.net/r/r"}, "outbound": {"kind": "none"}},
            "settingsSource.blob: with outbound.kind none, instances reach no blob.",
        ),
        (
            {"targets": [{"name": "one", "service": "sql", "id": SQL}, {"name": "two", "service": "sql", "id": SQL}]},
            "targets: one SQL server at most",
        ),
        (
            {"targets": [{"name": "mqtt", "service": "provisioning", "id": DPS}]},
            "targets: https, mqtt, amqp and device are names of relay's own listeners and routes.",
        ),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("minimal.bicepparam", **parameters)
