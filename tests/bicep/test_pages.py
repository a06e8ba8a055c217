"""The pages about Azure: files, parameters and outputs that they name are there, and commands are Azure's."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.bicep.compiler import MAIN_FILES, PARAMETER_FILES, TEMPLATES, predict, server
from tests.docs.blocks import blocks
from tests.support.programs import ROOT

PAGES = [
    "docs/how-to/deploy-to-azure.md",
    "docs/how-to/operate-on-azure.md",
    "docs/azure-costs.md",
    "docs/azure-first-deployment.md",
]
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)


def lines(program: str) -> list[list[str]]:
    """Command lines of a program in the pages, those inside $( ) included."""
    shells = [block.text for block in blocks() if block.page in PAGES and block.language == "sh"]
    text = re.sub(r"\\\n\s*", "", "\n".join(shells))
    found = re.findall(rf"(?:^|\$\(){re.escape(program)} [^\n)]*", text, re.MULTILINE)
    return [shlex.split(line.removeprefix("$(").partition(" >")[0]) for line in found]


def test_files_are_there() -> None:
    named = set(re.findall(r"`((?:deploy|scripts|docs)/[\w./-]+)`", TEXT))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert set(re.findall(r"\| `(\w+\.bicepparam)` \|", TEXT)) == set(MAIN_FILES)


def test_deployments_name_a_parameter_file_and_a_group() -> None:
    deployments = [line for line in lines("az") if line[1:3] == ["deployment", "group"]]
    assert len(deployments) >= 8
    for line in deployments:
        assert line[3] in ("what-if", "create", "show")
        assert line[line.index("--resource-group") + 1] == "relay"
        if line[3] != "show":
            file = line[line.index("--parameters") + 1]
            assert file in [f"deploy/bicep/params/{name}" for name in PARAMETER_FILES]
        else:
            output = line[line.index("--query") + 1].split(".")[2]
            name = "gallery.bicepparam" if "gallery" in line else "production.bicepparam"
            assert output in predict(name).outputs


@pytest.mark.parametrize(
    "name", [one[one.index("--name") + 1] for one in lines("az") if "--name" in one and one[1] in ("vmss", "identity")]
)
def test_resources_have_the_names_of_the_convention(name: str) -> None:
    assert name in [one["name"] for one in predict("production.bicepparam").resources]


def test_variables_are_those_of_the_parameter_files() -> None:
    read = set(
        re.findall(
            r"readEnvironmentVariable\('(\w+)'",
            "".join(file.read_text() for file in (TEMPLATES / "params").glob("*.bicepparam")),
        )
    )
    exported = set(re.findall(r"^export (\w+)=", TEXT, re.MULTILINE))
    assert exported
    assert exported <= read


def test_parameters_are_those_of_the_template() -> None:
    compiled = server().ask("compile", path=str(TEMPLATES / "main.bicep"))["contents"]
    for name in (
        "imageVersion",
        "existingCapacity",
        "regularBase",
        "settingsSource",
        "percentage",
        "canaryTag",
        "secondaryAddresses",
    ):
        assert f"`{name}" in TEXT or f".{name}" in TEXT, name
        assert f'"{name}"' in compiled, name


def test_the_preflight_command_is_there() -> None:
    commands = lines(".venv/bin/python")
    assert commands
    for line in commands:
        assert line[1:3] == ["-m", "scripts.azure_preflight"]
        assert (ROOT / line[3]).exists()
        assert set(line[4:]) <= {"--azure", "--customers"}


def test_the_diagram_has_what_the_template_makes() -> None:
    (diagram,) = [block.text for block in blocks() if block.page == PAGES[0] and block.language == "mermaid"]
    kinds = " ".join(one["type"].lower() for one in predict("production.bicepparam").resources)
    for word, kind in {
        "Standard Load Balancer": "loadbalancers",
        "scale set": "virtualmachinescalesets",
        "private endpoints": "privateendpoints",
        "NAT gateway": "natgateways",
        "private DNS zones": "privatednszones",
        "virtual network": "virtualnetworks",
        "autoscale": "autoscalesettings",
    }.items():
        assert word in diagram
        assert kind in kinds
