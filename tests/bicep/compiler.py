"""The Bicep compiler, and what it predicts of a deployment.

`bicep snapshot` evaluates a parameter file without Azure: conditions, loops, modules and functions are resolved, and
each resource stands there as it would be sent. What only Azure knows, such as an address, is left as an expression.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.programs import ROOT

TEMPLATES = ROOT / "deploy/bicep"
PARAMETER_FILES = sorted(file.name for file in (TEMPLATES / "params").glob("*.bicepparam"))
MAIN_FILES = [name for name in PARAMETER_FILES if name != "gallery.bicepparam"]
Json = dict[str, Any]

_GROUPS = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups"
ZONES = f"{_GROUPS}/dns/providers/Microsoft.Network/privateDnsZones"
HUB = f"{_GROUPS}/iot/providers/Microsoft.Devices/IotHubs/myhub"
DPS = f"{_GROUPS}/iot/providers/Microsoft.Devices/provisioningServices/mydps"
SQL = f"{_GROUPS}/iot/providers/Microsoft.Sql/servers/mysql"
NAMESPACE = f"{_GROUPS}/iot/providers/Microsoft.EventHub/namespaces/myevents"
# What the parameter files read from the environment.
VARIABLES = {
    "RELAY_HUB_ID": HUB,
    "RELAY_ALERT_EMAIL": "oncall@example.com",
    "RELAY_HUB_NAME": "myhub-dev",
    "RELAY_PUBLIC_KEY": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleKeyOfNobodyAtAllForTheTestsOnly test",
    "RELAY_DPS_ID": DPS,
    "RELAY_STORAGE_ID": f"{_GROUPS}/iot/providers/Microsoft.Storage/storageAccounts/myuploads",
    "RELAY_NETWORK_ID": f"{_GROUPS}/hubnet/providers/Microsoft.Network/virtualNetworks/vnet-hub",
    "RELAY_HUB_ZONE_ID": f"{ZONES}/privatelink.azure-devices.net",
    "RELAY_EVENT_HUBS_ZONE_ID": f"{ZONES}/privatelink.servicebus.windows.net",
}
PLACE = {
    "tenantId": "22222222-2222-2222-2222-222222222222",
    "subscriptionId": "00000000-0000-0000-0000-000000000000",
    "resourceGroup": "rg-relay",
    "location": "westeurope",
    "deploymentName": "main",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relay-tests/bicep"


@cache
def compiler() -> str:
    """The compiler: $BICEP, else the one on PATH, else the one that `az bicep install` has put away. Skips without."""
    asked = os.environ.get("BICEP")
    if asked:
        found = shutil.which(asked)
        assert found, f"BICEP: {asked} is not there"
        return str(Path(found).resolve())
    on_path = shutil.which("bicep") or shutil.which(Path.home() / ".azure/bin/bicep")
    if on_path is None:
        pytest.skip("no Bicep compiler: neither BICEP, nor bicep on PATH, nor az bicep")
    return on_path


class Refused(Exception):
    """The deployment would not begin; the text is what the compiler says."""


class Server:
    """A compiler that stays: `bicep jsonrpc`, one request at a time. Starting it takes longer than most answers."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._process = subprocess.Popen(
            [compiler(), "jsonrpc", "--stdio"],
            env=environment | VARIABLES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._number = 0
        atexit.register(self._process.kill)

    def ask(self, method: str, **parameters: object) -> Json:
        """The result of a request. Raises Refused with what the compiler says."""
        assert self._process.stdin
        assert self._process.stdout
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": f"bicep/{method}", "params": [parameters]}
        body = json.dumps(request).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._process.stdin.flush()
        headers = {}
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value
        answer: Json = json.loads(self._process.stdout.read(int(headers[b"content-length"])))
        assert answer["id"] == self._number
        if "error" in answer:
            raise Refused(answer["error"]["message"])
        return dict(answer["result"])


@cache
def server() -> Server:
    """The compiler of this process."""
    return Server()


def complaints(file: Path, method: str = "compile", **more: object) -> list[str]:
    """What the compiler says about a template or parameter file, warnings and the linter's included."""
    found = server().ask(method, path=str(file), **more)["diagnostics"]
    return [f"{Path(one['source']).name}: {one['level']} {one['code']}: {one['message']}" for one in found]


@cache
def _copy() -> TemporaryDirectory[str]:
    """The templates in a folder of this process, for parameter files of the tests beside them."""
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="relay-bicep-")
    for name in ("bicep", "prometheus"):
        shutil.copytree(ROOT / "deploy" / name, Path(folder.name) / name)
    return folder


@cache
def _inputs() -> bytes:
    """A digest of all that a prediction depends on, its parameter file apart."""
    digest = hashlib.sha256(json.dumps([server().ask("version"), VARIABLES, PLACE]).encode())
    loaded = [*TEMPLATES.glob("*.json"), *(ROOT / "deploy/prometheus").glob("*.yml")]
    for file in sorted([*TEMPLATES.rglob("*.bicep"), *TEMPLATES.rglob("*.bicepparam"), *loaded]):
        digest.update(f"{file.relative_to(ROOT)} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.digest()


class Prediction:
    """What a deployment would make."""

    def __init__(self, snapshot: Json) -> None:
        self.snapshot = snapshot
        self.resources: list[Json] = snapshot["predictedResources"]
        self.outputs: Json = snapshot.get("outputs", {})

    def all(self, kind: str) -> list[Json]:
        """Resources of a type, without the provider if it is not needed: `loadBalancers`, `virtualNetworks/subnets`."""
        return [one for one in self.resources if one["type"].lower().partition("/")[2] == kind.lower()]

    def one(self, kind: str, name: str | None = None) -> Json:
        """The only resource of that type, or the one of that name."""
        (only,) = [one for one in self.all(kind) if name in (None, one["name"])]
        return only

    @property
    def scale_set(self) -> Json:
        """Properties of the scale set, the Spot one where there are two."""
        return dict(self.all("virtualMachineScaleSets")[0]["properties"])

    @property
    def toml(self) -> str:
        """User data of the instances."""
        return base64.b64decode(self.scale_set["virtualMachineProfile"]["userData"]).decode()


def literal(value: object) -> str:
    """A Python value as Bicep writes it."""
    if isinstance(value, dict):
        return "{\n" + "".join(f"{name}: {literal(one)}\n" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"{literal(one)}\n" for one in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${") + "'"
    return json.dumps(value)


def _predict(text: str, template: str = "") -> Prediction:
    """What a parameter file makes. Kept in a folder for the next run: a busy machine takes seconds for each."""
    kept = CACHE / (hashlib.sha256(_inputs() + text.encode() + template.encode()).hexdigest() + ".json")
    if not kept.exists():
        with TemporaryDirectory(dir=Path(_copy().name) / "bicep/params") as folder:
            file = Path(folder) / "case.bicepparam"
            file.write_text(text)
            if template:
                file.with_suffix(".bicep").write_text(template)
            try:
                answer = server().ask("getSnapshot", path=str(file), metadata=PLACE, externalInputs=None)
            except Refused as refused:
                answer = {"refused": str(refused)}
                if "has errors" in str(refused) or "compilation" in str(refused).lower():
                    answer = {"refused": "\n".join(complaints(file, "compileParams", parameterOverrides={}))}
        CACHE.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(answer))
        new.rename(kept)
    answer = json.loads(kept.read_text())
    if "refused" in answer:
        raise Refused(answer["refused"])
    return Prediction(json.loads(answer["snapshot"]))


def predict(name: str, /, **parameters: object) -> Prediction:
    """What a parameter file of deploy/bicep/params makes, with other values for some parameters. Raises Refused."""
    template = "gallery" if name == "gallery.bicepparam" else "main"
    lines = [f"using '../../{template}.bicep'", f"extends '../{name}'"]
    lines += [f"param {parameter} = {literal(value)}" for parameter, value in parameters.items()]
    return _predict("\n".join(lines) + "\n")


def predict_module(module: str, **parameters: object) -> Prediction:
    """What a template of deploy/bicep makes by itself. Raises Refused."""
    lines = [f"using '../../{module}'"]
    lines += [f"param {parameter} = {literal(value)}" for parameter, value in parameters.items()]
    return _predict("\n".join(lines) + "\n")


def evaluate(expression: str, *functions: str) -> list[list[int]]:
    """Rows of numbers that an expression makes with functions of functions.bicep."""
    template = (
        f"import {{ {', '.join(functions)} }} from '../../functions.bicep'\noutput value int[][] = {expression}\n"
    )
    return list(_predict("using 'case.bicep'\n", template).outputs["value"])


def refusal(name: str, **parameters: object) -> str:
    """The sentence with which a deployment is refused."""
    with pytest.raises(Refused) as caught:
        predict(name, **parameters)
    return " ".join(str(caught.value).split())
