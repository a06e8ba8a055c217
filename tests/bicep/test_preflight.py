"""What the templates cannot see: networks that two customers have, examples left in place, quotas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import azure_preflight
from tests.bicep.compiler import MAIN_FILES, TEMPLATES, VARIABLES, compiler, predict, server
from tests.support.programs import ROOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleKeyOfNobodyAtAllForTheTestsOnly test"


def parameters(**change: Any) -> dict[str, Any]:
    access = {"kind": "relay", "customers": [{"name": "a", "networks": ["11.0.0.0/24"]}]}
    scale_set = {
        "kind": "flexible",
        "imageVersion": "1.4.0",
        "sizes": ["Standard_D2as_v5"],
        "instances": 3,
        "priority": {"kind": "spot"},
        "recovery": {"kind": "autoscale", "minimum": 2, "maximum": 10},
    }
    return {"access": access, "scaleSet": scale_set, "adminPublicKey": KEY} | change


def customers(*networks: list[str]) -> dict[str, Any]:
    return {"access": {"customers": [{"name": f"c{index}", "networks": one} for index, one in enumerate(networks)]}}


def test_nothing_is_found_in_what_is_right() -> None:
    assert list(azure_preflight.findings(parameters())) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (customers(["11.0.0.0/24"], ["11.0.0.0/24"]), "11.0.0.0/24 is of c0 and of c1; relay refuses that"),
        (customers(["11.0.0.0/8", "11.1.0.0/16"]), "c0: 11.1.0.0/16 is inside its own 11.0.0.0/8; leave it out"),
        (customers(["11.0.0.1/24"]), "access.customers c0: 11.0.0.1/24 has host bits set"),
        (customers(["203.0.113.0/25"]), "c0: 203.0.113.0/25 is a network of examples"),
        (customers(["2001:db8::/48"]), "c0: 2001:db8::/48 is a network of examples"),
        ({"access": {"customers": [{"name": "A b", "networks": []}]}}, "'A b' is no name"),
        ({"scaleSet": {"imageVersion": "1.04.0"}}, "scaleSet.imageVersion: 1.04.0 is not three integers"),
        ({"adminPublicKey": "ecdsa-sha2-nistp256 AAAA"}, "adminPublicKey: no public key"),
        ({"hub": {"id": "/subscriptions/00000000-0000-0000-0000-000000000000/x"}}, "a subscription of zeros"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], sentence: str) -> None:
    (line,) = azure_preflight.findings(parameters(**change))
    assert sentence in line


def test_a_network_inside_another_customer_s_is_fine() -> None:
    assert (
        list(azure_preflight.network_findings(customers(["11.0.0.0/8"], ["11.1.0.0/16"])["access"]["customers"])) == []
    )


networks = st.builds(
    lambda address, length: str(ip_network((address, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


def inside(inner: str, outer: str) -> bool:
    one, other = ip_network(inner), ip_network(outer)
    return one.network_address in other and one.prefixlen >= other.prefixlen


@given(st.lists(st.lists(networks, min_size=1, max_size=6), min_size=1, max_size=4))
def test_networks_are_found_as_a_plain_comparison_finds_them(lists: list[list[str]]) -> None:
    given = customers(*lists)["access"]["customers"]
    said = list(azure_preflight.network_findings(given))
    owners = [(one["name"], text) for one in given for text in one["networks"]]
    shared = {text for name, text in owners for other, same in owners if same == text and other != name}
    assert {line.split(" is of ")[0].rpartition(" ")[2] for line in said if " is of " in line} == shared
    if not shared:
        nested = set()
        for name, inner in owners:
            above = [text for _, text in owners if text != inner and inside(inner, text)]
            nearest = max(above, key=lambda text: ip_network(text).prefixlen, default=None)
            if (name, nearest) in owners:
                nested.add(inner)
        assert {line.split(" is inside ")[0].rpartition(" ")[2] for line in said if " is inside " in line} == nested


def run(*arguments: str | Path, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **VARIABLES, "BICEP": compiler(), "PATH": path}
    return subprocess.run(
        [sys.executable, "-m", "scripts.azure_preflight", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("name", MAIN_FILES)
def test_parameter_files_have_examples_in_them_and_nothing_else(name: str) -> None:
    file = TEMPLATES / "params" / name
    compiled = json.loads(server().ask("compileParams", path=str(file), parameterOverrides={})["parameters"])
    values = {one: given["value"] for one, given in compiled["parameters"].items()}
    found = list(azure_preflight.findings(values))
    assert bool(found) == (name != "development.bicepparam")
    assert all("is a network of examples" in line for line in found)


def test_the_command_compiles_the_file_and_tells() -> None:
    done = run(TEMPLATES / "params/minimal.bicepparam")
    assert done.returncode == 1
    assert done.stderr == "access.customers contoso: 203.0.113.0/24 is a network of examples\n"


def test_customers_for_a_blob_are_those_of_user_data(tmp_path: Path) -> None:
    """Printed by --customers, once the networks of examples are replaced."""
    wanted: list[dict[str, Any]] = [
        {
            "name": "a",
            "networks": ["11.0.0.0/24", "2a00::/32"],
            "maxConnections": 9,
            "connectRate": 5,
            "connectBurst": 7,
        },
        {"name": "b", "networks": ["12.0.0.0/24"], "listeners": ["mqtt"]},
    ]
    made = predict("minimal.bicepparam", access={"kind": "relay", "customers": wanted})
    assert tomllib.loads(azure_preflight.customers_toml(wanted))["customers"] == tomllib.loads(made.toml)["customers"]
    done = run(TEMPLATES / "params/development.bicepparam", "--customers")
    assert (done.returncode, done.stdout) == (0, "\n")


# Answers of the Azure CLI in the shape that it documents; there is no Azure here.
AZ = """#!{python}
import json, sys
answers = json.load(open({file!r}))
for words, answer in answers.items():
    if " ".join(sys.argv[1:]).startswith(words):
        print(json.dumps(answer))
        sys.exit(0)
sys.exit("unexpected: " + " ".join(sys.argv[1:]))
"""


def sku(**capabilities: str) -> dict[str, Any]:
    given = {"vCPUs": "2", "LowPriorityCapable": "True", "AcceleratedNetworkingEnabled": "True"} | capabilities
    return {
        "name": "Standard_D2as_v5",
        "restrictions": [],
        "capabilities": [{"name": name, "value": value} for name, value in given.items()],
    }


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ({}, []),
        ({"provider list": []}, [f"provider {one} is not registered" for one in azure_preflight.PROVIDERS]),
        ({"vm list-skus": []}, ["size Standard_D2as_v5 is not in westeurope"]),
        (
            {"vm list-skus": [sku(LowPriorityCapable="False", AcceleratedNetworkingEnabled="False")]},
            ["size Standard_D2as_v5 cannot be Spot", "size Standard_D2as_v5 has no accelerated networking"],
        ),
        (
            {"vm list-skus": [sku() | {"restrictions": [{"reasonCode": "NotAvailableForSubscription"}]}]},
            ["size Standard_D2as_v5 is restricted in westeurope: NotAvailableForSubscription"],
        ),
        (
            {"vm list-usage": [{"name": {"value": "lowPriorityCores"}, "limit": "20", "currentValue": 4}]},
            ["Spot quota in westeurope: 20 cores are needed, and 16 of 20 are free"],
        ),
    ],
)
def test_the_subscription_is_asked(
    change: dict[str, Any], sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "provider list": [{"namespace": one, "registrationState": "Registered"} for one in azure_preflight.PROVIDERS],
        "vm list-skus": [sku()],
        "vm list-usage": [{"name": {"value": "lowPriorityCores"}, "limit": "100", "currentValue": 0}],
    } | change
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    program = tmp_path / "az"
    program.write_text(AZ.format(python=sys.executable, file=str(tmp_path / "answers.json")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = list(azure_preflight.azure_findings(parameters(), "westeurope"))
    assert len(said) == len(sentences)
    for line, sentence in zip(said, sentences, strict=True):
        assert line.startswith(sentence)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("BICEP", raising=False)
    assert azure_preflight.main(["x.bicepparam"]) == 2
    assert "no Bicep compiler" in capsys.readouterr().err
