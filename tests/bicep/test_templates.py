"""Every template and parameter file: compiles, lints, is formatted, and predicts what is committed."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest

from tests.bicep.compiler import PARAMETER_FILES, TEMPLATES, complaints, predict, server

SOURCES = sorted(TEMPLATES.rglob("*.bicep"))
SNAPSHOTS = TEMPLATES / "snapshots"
VERSION = re.compile(r"'(Microsoft\.[\w./]+)@([\w.-]+)'")

# The newest stable version of these types is older than two years; the compiler's rule use-recent-api-versions, which
# is an error here, accepts it for that reason alone.
OLD = {
    "Microsoft.AlertsManagement/prometheusRuleGroups": "2023-03-01",
    "Microsoft.Authorization/roleAssignments": "2022-04-01",
    "Microsoft.Devices/IotHubs": "2023-06-30",
    "Microsoft.Insights/actionGroups": "2023-01-01",
    "Microsoft.Insights/autoscaleSettings": "2022-10-01",
    "Microsoft.Insights/dataCollectionEndpoints": "2024-03-11",
    "Microsoft.Insights/dataCollectionRuleAssociations": "2024-03-11",
    "Microsoft.Insights/dataCollectionRules": "2024-03-11",
    "Microsoft.Insights/workbooks": "2023-06-01",
    "Microsoft.Network/privateDnsZones": "2024-06-01",
    "Microsoft.Network/privateDnsZones/A": "2024-06-01",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": "2024-06-01",
}
OLDEST = "2024-11-30"  # two years before the versions were chosen


def relative(file: Path) -> str:
    return str(file.relative_to(TEMPLATES))


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_compiles_and_lints_without_a_warning(source: Path) -> None:
    assert complaints(source) == []


@pytest.mark.parametrize("name", PARAMETER_FILES)
def test_a_parameter_file_compiles_without_a_warning(name: str) -> None:
    assert complaints(TEMPLATES / "params" / name, "compileParams", parameterOverrides={}) == []


@pytest.mark.parametrize("file", [*SOURCES, *(TEMPLATES / "params").glob("*.bicepparam")], ids=relative)
def test_formatted_as_the_compiler_formats(file: Path) -> None:
    assert server().ask("format", path=str(file))["contents"] == file.read_text(), f"bicep format {relative(file)}"


@pytest.mark.parametrize("name", PARAMETER_FILES)
def test_predicts_what_is_committed(name: str) -> None:
    """`python -m scripts.bicep_snapshots` writes them anew; the difference belongs into the review of a change."""
    committed = json.loads((SNAPSHOTS / name).with_suffix(".json").read_text())
    assert predict(name).snapshot == committed


def test_api_versions_are_stable_and_recent() -> None:
    seen = set()
    for source in SOURCES:
        for kind, version in VERSION.findall(source.read_text()):
            seen.add(kind)
            if kind == "Microsoft.Insights/diagnosticSettings":  # no stable version has log categories by group
                assert version == "2021-05-01-preview"
                continue
            date.fromisoformat(version)  # raises for a preview
            if version < OLDEST:
                assert OLD[kind] == version, f"{kind}@{version} in {relative(source)}"
    assert set(OLD) <= seen, "no longer used"


def test_a_mistake_in_a_template_is_an_error(tmp_path: Path) -> None:
    """An unknown property is a warning of the compiler that no rule can raise: warnings fail the tests above."""
    (tmp_path / "bicepconfig.json").write_text((TEMPLATES / "bicepconfig.json").read_text())
    wrong = tmp_path / "wrong.bicep"
    wrong.write_text(
        "param unused string\nresource a 'Microsoft.Network/publicIPAddresses@2015-06-15' = { name: 'a' }\n"
    )
    found = complaints(wrong)
    assert [one for one in found if "Error no-unused-params" in one]
    assert [one for one in found if "Error use-recent-api-versions" in one]
