"""Looks at a parameter file of deploy/bicep for what a template cannot see, before anything is deployed.

    python -m scripts.azure_preflight deploy/bicep/params/production.bicepparam
    python -m scripts.azure_preflight deploy/bicep/params/production.bicepparam --azure
    python -m scripts.azure_preflight deploy/bicep/params/production.bicepparam --customers

The first compiles the file (with $BICEP, bicep on PATH, or az bicep) and looks at customers' networks, examples left in
place, and the image version. --azure asks the subscription as well, by the Azure CLI: providers, quotas, sizes.
--customers prints the [[customers]] tables, for a blob with settings. Exit status: 0 well, 1 findings, 2 not looked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Network = IPv4Network | IPv6Network

PROVIDERS = (
    "Microsoft.Compute",
    "Microsoft.Devices",
    "Microsoft.Insights",
    "Microsoft.ManagedIdentity",
    "Microsoft.Network",
    "Microsoft.OperationalInsights",
)
_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_DOCUMENTATION = [ip_network(one) for one in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")]


class CannotLook(Exception):
    """The text says what is missing."""


def compile_parameters(file: Path) -> Json:
    """The values of a parameter file. Raises CannotLook."""
    program = os.environ.get("BICEP") or shutil.which("bicep")
    command = [program, "build-params"] if program else ["az", "bicep", "build-params", "--file"]
    if not program and shutil.which("az") is None:
        raise CannotLook("no Bicep compiler: set BICEP, or install bicep or the Azure CLI")
    done = subprocess.run([*command, str(file), "--stdout"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotLook(done.stderr.strip() or f"{file} does not compile")
    compiled = json.loads(done.stdout)
    text = compiled.get("parametersJson", compiled)
    parameters = (json.loads(text) if isinstance(text, str) else text)["parameters"]
    return {name: one["value"] for name, one in parameters.items()}


def network_findings(customers: list[Json]) -> Iterator[str]:
    """Networks that are none, that two customers have, or that lie inside another one of the same customer."""
    owners: dict[Network, str] = {}
    for customer in customers:
        for text in customer["networks"]:
            try:
                network = ip_network(text)
            except ValueError as error:
                yield f"access.customers {customer['name']}: {error}"
                continue
            owner = owners.setdefault(network, customer["name"])
            if owner != customer["name"]:
                yield f"access.customers: {text} is of {owner} and of {customer['name']}; relay refuses that"
    seen: list[Network] = []
    for network in sorted(owners, key=lambda one: (one.version, int(one.network_address), one.prefixlen)):
        while seen and not _contains(seen[-1], network):
            seen.pop()
        if seen and owners[seen[-1]] == owners[network]:
            yield f"access.customers {owners[network]}: {network} is inside its own {seen[-1]}; leave it out"
        seen.append(network)


def _contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and int(outer.broadcast_address) >= int(inner.broadcast_address)


def findings(parameters: Json) -> Iterator[str]:
    """What is wrong with the values by themselves, a line each."""
    customers = parameters.get("access", {}).get("customers", [])
    for customer in customers:
        if not _NAME.fullmatch(customer["name"]):
            yield f"access.customers: {customer['name']!r} is no name: 1 to 64 of a-z 0-9 - _ and ."
    yield from network_findings(customers)
    for customer in customers:
        for text in customer["networks"]:
            if any(_inside(text, one) for one in _DOCUMENTATION):
                yield f"access.customers {customer['name']}: {text} is a network of examples"
    version = parameters.get("scaleSet", {}).get("imageVersion")
    if version is not None and not _VERSION.fullmatch(version):
        yield f"scaleSet.imageVersion: {version} is not three integers, such as 1.4.0"
    key = parameters.get("adminPublicKey", "")
    if not re.match(r"(ssh-(rsa|ed25519)) [A-Za-z0-9+/=]{40,}", key):
        yield "adminPublicKey: no public key of type ssh-rsa or ssh-ed25519, which are the ones that Azure takes"
    if "00000000-0000-0000-0000-000000000000" in json.dumps(parameters):
        yield "a resource id has a subscription of zeros"


def _inside(text: str, outer: Network) -> bool:
    try:
        network = ip_network(text)
    except ValueError:
        return False
    return network.version == outer.version and network.subnet_of(outer)  # type: ignore[arg-type]


def az(*arguments: str) -> Any:
    """The answer of the Azure CLI. Raises CannotLook."""
    if shutil.which("az") is None:
        raise CannotLook("--azure needs the Azure CLI, az")
    done = subprocess.run(["az", *arguments, "--output", "json"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotLook(f"az {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def azure_findings(parameters: Json, location: str) -> Iterator[str]:
    """What is wrong with the subscription: providers, Spot quota, sizes in the region. Raises CannotLook."""
    states = {one["namespace"]: one["registrationState"] for one in az("provider", "list")}
    for provider in PROVIDERS:
        if states.get(provider) != "Registered":
            yield f"provider {provider} is not registered: az provider register --namespace {provider}"
    scale_set = parameters["scaleSet"]
    sizes = scale_set.get("sizes") or [scale_set["size"]]
    recovery = scale_set["recovery"]
    instances = max(recovery.get("maximum", 0), scale_set.get("instances", scale_set.get("spotInstances", 0)))
    skus = {
        one["name"]: one for one in az("vm", "list-skus", "--location", location, "--resource-type", "virtualMachines")
    }
    cores = 0
    for size in sizes:
        sku = skus.get(size)
        if sku is None:
            yield f"size {size} is not in {location}"
            continue
        for restriction in sku.get("restrictions", []):
            yield f"size {size} is restricted in {location}: {restriction['reasonCode']}"
        capabilities = {one["name"]: one["value"] for one in sku["capabilities"]}
        cores = max(cores, int(capabilities["vCPUs"]))
        if (
            scale_set.get("priority", {"kind": "spot"})["kind"] == "spot"
            and capabilities.get("LowPriorityCapable") != "True"
        ):
            yield f"size {size} cannot be Spot"
        if capabilities.get("AcceleratedNetworkingEnabled") != "True":
            yield f"size {size} has no accelerated networking"
    usage = {one["name"]["value"]: one for one in az("vm", "list-usage", "--location", location)}
    spot = usage.get("lowPriorityCores")
    if spot is not None and int(spot["limit"]) - int(spot["currentValue"]) < cores * instances:
        yield (
            f"Spot quota in {location}: {cores * instances} cores are needed, and "
            f"{int(spot['limit']) - int(spot['currentValue'])} of {spot['limit']} are free"
        )


def customers_toml(customers: list[Json]) -> str:
    """The [[customers]] tables of relay.toml. JSON's strings, and lists of them, are TOML's as well."""
    names = {"maxConnections": "max_connections", "connectBurst": "connect_burst", "listeners": "listeners"}
    text = []
    for customer in customers:
        text.append(
            f"\n[[customers]]\nname = {json.dumps(customer['name'])}\nnetworks = {json.dumps(customer['networks'])}"
        )
        text += [
            f"{name} = {json.dumps(customer[key])}" for key, name in names.items() if customer.get(key) is not None
        ]
        if customer.get("connectRate") is not None:
            text.append(f"connect_rate = {float(customer['connectRate'])}")
    return "\n".join(text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Look, and print a line for each finding."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.azure_preflight", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a parameter file of main.bicep")
    parser.add_argument("--azure", action="store_true", help="ask the subscription too, with az")
    parser.add_argument("--location", default="westeurope", help="region, for --azure (default: %(default)s)")
    parser.add_argument("--customers", action="store_true", help="print the [[customers]] tables and nothing else")
    options = parser.parse_args(arguments)
    try:
        parameters = compile_parameters(options.file)
        found = list(findings(parameters))
        if options.customers and not found:
            print(customers_toml(parameters.get("access", {}).get("customers", [])), end="")
            return 0
        if options.azure:
            found += azure_findings(parameters, options.location)
    except CannotLook as error:
        print(error, file=sys.stderr)
        return 2
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"{options.file}: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
