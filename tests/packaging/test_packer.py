"""packer/: what can be said of the template without Azure.

Debian's Packer 1.6.6 has an azure-arm builder of its own, which is older than the plugin that the template is for: it
checks a copy without the arguments that it does not know. Those, like all others, are compared with the argument names
in the plugin's documentation (packer_arguments.json). A newer Packer checks the template itself, where its azure plugin
is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest

from scripts.image import scripts
from tests.image.checks.test_hardening import RULES
from tests.support.programs import ROOT

PACKER = ROOT / "packer"
ARGUMENTS: dict[str, Any] = json.loads(Path(__file__).with_name("packer_arguments.json").read_text())
EXAMPLES = sorted(path.name for path in PACKER.glob("*.pkrvars.hcl"))
HOWTO = ROOT / "docs/how-to/bake-the-image.md"

# What the builder of Packer 1.6.6 does not know.
NEWER = (
    "oidc_request_url", "oidc_request_token", "disk_controller_type", "security_type", "secure_boot_enabled",
    "vtpm_enabled", "skip_create_image", "storage_account_type",
)  # fmt: skip
NEWER_BLOCKS = ("spot", "target_region")
ONLY_UUID = "00000000-0000-0000-0000-000000000000"

needs_packer = pytest.mark.skipif(shutil.which("packer") is None, reason="packer is not installed")


def packer(*arguments: str, folder: Path = PACKER) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "not-a-token"}
    return subprocess.run(["packer", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def old() -> bool:
    """Whether Packer has an azure-arm builder of its own."""
    version = re.search(r"(\d+)\.(\d+)", packer("version").stdout)
    assert version
    return (int(version[1]), int(version[2])) < (1, 7)


def lines_without(text: str, names: tuple[str, ...], blocks: tuple[str, ...]) -> str:
    """An HCL text, formatted, without arguments of these names and dynamic blocks of those."""
    for block in blocks:
        pattern = rf'^( *)dynamic "{block}" \{{\n.*?^\1\}}\n'
        text, count = re.subn(pattern, "", text, flags=re.MULTILINE | re.DOTALL)
        assert count == 1, block
    for name in names:
        text, count = re.subn(rf"^ *{name} *=.*\n", "", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the Packer at hand can validate."""
    folder = tmp_path_factory.mktemp("packer") / "packer"
    shutil.copytree(PACKER, folder, ignore=shutil.ignore_patterns("build", "artifacts"))
    for arch in ("x86_64", "aarch64"):
        (folder / "packer/build" / arch).mkdir(parents=True)  # the examples' paths are from the root of the tree
    if old():
        (folder / "plugins.pkr.hcl").unlink()
        sources = folder / "sources.pkr.hcl"
        text = lines_without(sources.read_text(), NEWER, NEWER_BLOCKS)
        # It makes a gallery's version of a managed image only, and has no OIDC.
        image = '  managed_image_name = "x"\n  managed_image_resource_group_name = "x"\n'
        text = text.replace("  os_type ", f"{image}  os_type ")
        text = text.replace("gallery_name ", "replication_regions = keys(local.replicas)\n gallery_name ")
        text = re.sub(r"^  (tenant|client)_id .*\n", "", text, flags=re.MULTILINE)
        sources.write_text(text)
    elif "hashicorp/azure" not in packer("plugins", "installed").stdout:
        pytest.skip("packer has no azure plugin (packer init packer)")
    return folder


# --- Packer's own checks ----------------------------------------------------------------------------------------------


@needs_packer
def test_the_template_is_formatted() -> None:
    done = packer("fmt", "-check", "-diff", ".")
    assert done.returncode == 0, done.stdout


@needs_packer
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_valid(template: Path, example: str) -> None:
    done = packer("validate", f"-var-file={example}", ".", folder=template)
    assert done.returncode == 0, done.stdout + done.stderr


NETWORK = (
    'build_network={{allowed_inbound_ip_addresses=[{}],virtual_network_name="{}",virtual_network_subnet_name="",'
    'virtual_network_resource_group_name=""}}'
)


@needs_packer
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("image=nginx", "one of relay or haproxy"),
        ("image_version=1.0.0rc1", "three integers"),
        ("image_version=", "three integers"),
        ("arch=x86_64", "amd64 or arm64"),
        ("base_image_version=newest", "base_image_version is latest"),
        ("files=", "folder of files must be named"),
        ("ssh=maybe", "off or on"),
        ("unattended_upgrades=maybe", "on or off"),
        ("azure_monitor=journald", "off, rsyslog or file"),
        ("prometheus=on", "off or agent"),
        ("prometheus_remote_write=http://x", "begins with https://"),
        ("prometheus_client_id=me", "is a UUID"),
        ("auth=password", "cli, oidc or identity"),
        ("subscription_id=mine", "is a UUID"),
        ("tenant_id=mine", "is a UUID"),
        ("client_id=mine", "is a UUID"),
        ("location=West Europe", "region's short name"),
        ("vm_size=", "begins with Standard_"),
        (NETWORK.format("", ""), "open to everybody"),
        (NETWORK.format('"203.0.113.7"', "builds"), "open to everybody"),
        (NETWORK.format('"0.0.0.0/0"', ""), "all of the Internet"),
        (NETWORK.format('"::/0"', ""), "all of the Internet"),
        (NETWORK.format('"*"', ""), "all of the Internet"),
        ("disk_controller_type=SATA", "SCSI or NVMe"),
        ('gallery={resource_group="a",name="my-gallery",image="c"}', "no hyphen"),
        ("replicas={westeurope=0}", "are 1 to 100"),
        ("storage_account_type=Standard_GRS", "Standard_ZRS, Standard_LRS"),
        ("end_of_life=soon", "2027-12-31T00:00:00Z"),
    ],
)
def test_a_wrong_value_is_named(template: Path, value: str, said: str) -> None:
    done = packer("validate", f"-var-file={EXAMPLES[1]}", "-var", value, ".", folder=template)
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split())


# --- what Packer 1.6.6 cannot say -------------------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    """A file of the template as python-hcl2 reads it; names without their quotes."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key).strip('"'): plain(item) for key, item in value.items() if not str(key).startswith("__")}
        return [plain(item) for item in value] if isinstance(value, list) else value

    with (PACKER / name).open() as file:
        found: dict[str, Any] = plain(hcl2.load(file))
    return found


def source(kind: str) -> dict[str, Any]:
    (found,) = [block[kind] for block in load("sources.pkr.hcl")["source"] if kind in block]
    ((_, body),) = found.items()
    return dict(body)


def blocks(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The contents of dynamic blocks, nested ones too, by name."""
    found: dict[str, dict[str, Any]] = {}
    for block in body.get("dynamic", []):
        for name, inside in block.items():
            (content,) = inside["content"]
            found |= {name: content} | blocks(content)
    return found


def test_every_argument_is_in_the_plugin_s_documentation() -> None:
    body = source("azure-arm")
    nested = blocks(body)
    assert set(nested) == {"spot", "shared_image_gallery_destination", "target_region"}
    documented = {*ARGUMENTS["azure-arm"], *ARGUMENTS["communicator"], "dynamic"}
    assert set(body) - documented == set()
    for name, content in nested.items():
        assert set(content) - {"dynamic"} - set(ARGUMENTS[name]) == set(), name
    used = set(body) | {argument for content in nested.values() for argument in content}
    assert used & set(ARGUMENTS["deprecated"]) == set()
    # What is left out of the copy for Packer 1.6.6 is known to the plugin.
    assert set(NEWER) <= {argument for names in ARGUMENTS.values() if isinstance(names, list) for argument in names}


def test_the_image_is_of_a_trusted_launch_and_nobody_s_latest() -> None:
    body = source("azure-arm")
    assert body["security_type"].strip('"') == "TrustedLaunch"
    assert (body["secure_boot_enabled"], body["vtpm_enabled"]) == (True, True)
    assert body["shared_gallery_image_version_exclude_from_latest"] is True
    assert "vm_size" in body
    assert "allowed_inbound_ip_addresses" in body


def test_no_file_has_a_secret() -> None:
    for path in PACKER.glob("*.hcl"):
        text = path.read_text()
        assert not re.search(r"client_secret|client_cert|client_jwt|_password", text), path.name
    for name in EXAMPLES:
        assert "oidc_request" not in (PACKER / name).read_text()
        assert set(re.findall(r"[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}", (PACKER / name).read_text())) <= {ONLY_UUID}


def test_every_variable_is_described_and_checked() -> None:
    for block in load("variables.pkr.hcl")["variable"]:
        ((name, body),) = block.items()
        assert body["description"].strip('"').endswith("."), name
        if body["type"] in ("bool", "${bool}") or name in ("oidc_request_url", "oidc_request_token", "tags", "local"):
            continue
        assert body["validation"], name


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_sets_variables_that_there_are(example: str) -> None:
    declared = {name for block in load("variables.pkr.hcl")["variable"] for name in block}
    needed = {
        name for block in load("variables.pkr.hcl")["variable"] for name, body in block.items() if "default" not in body
    }
    assert needed <= set(load(example)) <= declared


def test_packer_runs_every_script_in_order() -> None:
    named = re.findall(r"scripts/([0-9]{2}-[a-z-]+\.sh)", (PACKER / "build.pkr.hcl").read_text())
    once = list(dict.fromkeys(named))
    assert once == [path.name for path in scripts()]


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*scripts(), PACKER / "check.sh", PACKER / "publish.sh"], ids=lambda path: path.name)
def test_a_script_stops_at_its_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["shellcheck", *scripts(), PACKER / "check.sh", PACKER / "publish.sh"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def rules(text: str) -> set[str]:
    """Numbers of rules in a text: 1.2.3, 2.4.1.2 to 2.4.1.7."""
    found = set(re.findall(r"(?<![\w.])\d\.\d{1,2}(?:\.\d{1,2}){1,2}(?![\w.]*\d)", text))
    for first, last in re.findall(r"(\d(?:\.\d+){2,3}) to (\d(?:\.\d+){2,3})", text):
        stem, begin, end = first.rpartition(".")[0], int(first.rpartition(".")[2]), int(last.rpartition(".")[2])
        found |= {f"{stem}.{number}" for number in range(begin, end + 1)}
    return found


def test_hardening_script_checks_and_how_to_have_the_same_rules() -> None:
    script = (PACKER / "scripts/40-hardening.sh").read_text().partition("set -euo pipefail")[2]
    comments = "\n".join(line for line in script.splitlines() if "#" in line)
    # Three that the system has from elsewhere: 10-system.sh installs two, and one is a check alone.
    assert rules(comments) | {"1.3.1.1", "5.2.1", "2.1.22"} == RULES
    section = HOWTO.read_text().partition("\n## Hardening\n")[2].partition("\n## ")[0]
    done, left_out = section.split("Left out")
    assert rules(done) == RULES
    assert rules(left_out) & RULES == set()
