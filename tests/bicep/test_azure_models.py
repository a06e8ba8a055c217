"""Every enum of the predicted resources, against Azure's SDK; and a policy linter over the same resources."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.bicep.compiler import PARAMETER_FILES, Json, predict
from tests.bicep.test_scale_set import FLEXIBLE, REGULAR
from tests.support.programs import ROOT

pytestmark = pytest.mark.azure_tools

# The SDK that is locked has no model of these.
WITHOUT_MODEL = {
    "Microsoft.AlertsManagement/prometheusRuleGroups",
    "Microsoft.Insights/diagnosticSettings",
    "Microsoft.Monitor/accounts",
}
# What checkov would have otherwise, and why it stays so.
ACCEPTED = {
    "CKV_AZURE_95": "looks for automatic OS upgrades where Azure has no such property; Uniform has them",
    "CKV_AZURE_97": "encryption at host needs a feature of the subscription; the parameter of that name turns it on",
}


@cache
def tool(name: str) -> str:
    done = subprocess.run([ROOT / "scripts/azure_tools.sh", name], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return done.stdout.strip()


def variants() -> list[Json]:
    """Resources of all parameter files, and of the choices that none of them makes."""
    hub = {"kind": "new", "name": "myhub", "sku": "S3", "units": 1, "allowedNetworks": ["192.0.2.0/24"]}
    found = [one for name in PARAMETER_FILES for one in predict(name).resources]
    found += predict(
        "minimal.bicepparam",
        hub=hub,
        scaleSet=FLEXIBLE | {"priority": REGULAR, "recovery": {"kind": "none"}},
        outbound={"kind": "natGateway", "sku": "Standard"},
    ).resources
    found += predict(
        "minimal.bicepparam",
        hub=hub | {"sku": "S2"},
        scaleSet=FLEXIBLE
        | {"sizes": ["Standard_D2s_v5", "Standard_D2as_v5"], "allocation": "LowestPrice"}
        | {"osDisk": {"kind": "managed", "storage": "Premium_LRS"}},
    ).resources
    for placement in ("CacheDisk", "NvmeDisk"):
        disk = {"osDisk": {"kind": "ephemeral", "placement": placement}}
        found += predict("minimal.bicepparam", scaleSet=FLEXIBLE | disk).resources
    found += predict("gallery.bicepparam", architectures=["Arm64"], packerPrincipalId="33333333").resources
    return found


def look(resources: list[Json]) -> dict[str, Any]:
    done = subprocess.run(
        [tool("models"), Path(__file__).with_name("azure_enums.py")],
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(900)  # may fetch the models
def test_every_enum_has_a_value_that_the_sdk_knows() -> None:
    said = look(variants())
    assert said["mistakes"] == []
    assert set(said["without"]) == WITHOUT_MODEL
    assert len(said["checked"]) > 80
    for value in (
        "priority = Spot",
        "sku.name = StandardV2",
        "noHealthyBackendsBehavior = AllProbedUp",
        "sku.name = S3",
    ):
        assert any(one.endswith(value) for one in said["checked"]), value


@pytest.mark.timeout(900)
def test_a_value_that_azure_does_not_know_is_found() -> None:
    (scale_set,) = predict("minimal.bicepparam").all("virtualMachineScaleSets")
    wrong = json.loads(json.dumps(scale_set).replace("TrustedLaunch", "TrustedLunch"))
    hub = {"type": "Microsoft.Devices/IotHubs", "properties": {"publicNetworkAccess": "No"}, "sku": {"name": "S9"}}
    said = look([wrong, hub])["mistakes"]
    assert [one.split(":")[0].rpartition(".")[2] for one in said] == [
        "securityType = 'TrustedLunch'",
        "publicNetworkAccess = 'No'",
        "name = 'S9'",
    ]


@pytest.mark.timeout(900)
def test_checkov_has_nothing_to_say_that_is_not_answered(tmp_path: Path) -> None:
    """On the resources as they would be sent: of a template with modules checkov sees the expressions only."""
    for name in PARAMETER_FILES:
        template = {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "resources": [{key: one[key] for key in one if key != "id"} for one in predict(name).resources],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(template))
    done = subprocess.run(
        [tool("checkov"), "--compact", "--framework", "arm", "--directory", tmp_path, "--output", "json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    results = json.loads(done.stdout)["results"]
    assert results["parsing_errors"] == []
    failed = {one["check_id"]: f"{one['check_name']}: {one['resource']}" for one in results["failed_checks"]}
    assert set(failed) == set(ACCEPTED), failed
    passed = {one["check_id"] for one in results["passed_checks"]}
    assert {"CKV_AZURE_9", "CKV_AZURE_10", "CKV_AZURE_49", "CKV_AZURE_160"} <= passed  # it did look
