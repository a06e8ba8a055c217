"""Writes dpkg's list of installed packages as CycloneDX 1.6 to standard output.

    python3 dpkg_sbom.py IMAGE VERSION

Runs on the image, with the standard library alone. Times and serial numbers are left out: the same packages give the
same document.
"""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.parse import quote

FIELDS = ("db:Status-Status", "Package", "Version", "Architecture", "source:Package", "source:Version", "Maintainer")


def installed() -> list[dict[str, str]]:
    """A dictionary for each installed package, by FIELDS."""
    line = "\\t".join(f"${{{field}}}" for field in FIELDS) + "\\n"
    found = subprocess.run(
        ["dpkg-query", "--show", "--showformat", line], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    packages = [dict(zip(FIELDS, row.split("\t"), strict=True)) for row in found.splitlines()]
    return [package for package in packages if package["db:Status-Status"] == "installed"]


def component(package: dict[str, str], distribution: str) -> dict[str, object]:
    """The component of one package, named by its package URL (purl-spec, type deb)."""
    name, version, arch = package["Package"], package["Version"], package["Architecture"]
    where = f"{distribution}/{quote(name, safe='')}@{quote(version, safe='')}?arch={arch}"
    purl = f"pkg:deb/{where}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "supplier": {"name": package["Maintainer"]},
        "properties": [
            {"name": "dpkg:source", "value": package["source:Package"]},
            {"name": "dpkg:source-version", "value": package["source:Version"]},
        ],
    }


def main() -> int:
    """0; ends with the error of dpkg-query if that fails."""
    image, version = sys.argv[1:]
    with open("/etc/os-release", encoding="utf-8") as file:  # noqa: PTH123  # one file, no paths
        release = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    components = [component(package, release["ID"].strip('"')) for package in installed()]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "operating-system", "name": f"{image}-image", "version": version}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
