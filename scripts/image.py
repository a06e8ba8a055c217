"""Prepares what the machine image is baked from, and bakes a local root with the scripts that Packer runs.

    python -m scripts.image version                       the gallery's version of this tree: three integers
    python -m scripts.image files [--arch ARCH]...        packer/build/ARCH: all that the scripts need, for offline use
    python -m scripts.image bake ROOT [--image haproxy] [--set SSH=on]... [--only 20,40]

`files` builds relay's Debian package and gathers the configuration files and the wheels of cyclonedx-bom, by hash.
`bake` runs packer/scripts in their order, in the root folder of an Ubuntu 24.04 that nobody has booted
(systemd-nspawn, root, Linux), and changes that root. The network is this machine's, for apt alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.dist import ARCHES, ROOT, run, say, target, version

PYTHON = "3.12"  # of Ubuntu 24.04
PLACE = "/tmp/relay-image"  # noqa: S108  # on the machine that becomes an image; where packer/ puts the files
SCRIPTS = ROOT / "packer/scripts"
PLAIN = (
    "packer/files/dpkg_sbom.py",
    "packer/haproxy/haproxy.cfg",
    "packer/haproxy/haproxy.service.conf",
    "deploy/systemd/relay-sysctl.conf",
    "deploy/systemd/relay-journald.conf",
)
IMAGES = ("relay", "haproxy")


class Refused(ValueError):
    """A version that a gallery cannot have, and why."""


def gallery_version(text: str) -> str:
    """The version of a gallery's image for a version of relay: MAJOR.MINOR.PATCH, three integers up to 2**31 - 1.

    Raises Refused for anything else. An Azure Compute Gallery orders versions by these integers and has no place for
    `rc1`: a candidate published as 1.2.3 could never be replaced by 1.2.3 itself.
    """
    match = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", text, re.ASCII)
    if match is None:
        raise Refused(
            f"version {text}: a gallery's image version is three integers, and this is no release; set a version of "
            "the form 1.2.3 in relay/__init__.py, or name one for a trial: packer build -var image_version=0.0.1"
        )
    if any(int(part) >= 1 << 31 for part in match.groups()):
        raise Refused(f"version {text}: a gallery takes integers up to {(1 << 31) - 1}")
    return text


def gather(arch: str, output: Path, compress: str, wheels: Path | None) -> Path:
    """The files for one architecture, in a folder of its own below `output`; returns that."""
    folder = output / arch
    shutil.rmtree(folder, ignore_errors=True)
    tools = folder / "sbom-wheels"
    tools.mkdir(parents=True)
    for name in PLAIN:
        shutil.copy(ROOT / name, folder)
    say(f"cyclonedx-bom for {arch}, Python {PYTHON}")
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--require-hashes", *target(arch, PYTHON), f"--dest={tools}", "--requirement", "requirements/image.txt"),
    )
    line = [sys.executable, "-m", "scripts.deb", "--arch", arch, "--output", str(folder), "--compress", compress]
    run(*line, *(["--wheels", str(wheels)] if wheels else []))
    (folder / "SHA256SUMS").unlink()
    return folder


def scripts(only: Sequence[str] = ()) -> list[Path]:
    """The provisioning scripts in order, or those of them whose numbers are in `only`."""
    return [path for path in sorted(SCRIPTS.glob("[0-9][0-9]-*.sh")) if not only or path.name[:2] in only]


def bake(root: Path, files: Path, settings: Mapping[str, str], only: Sequence[str] = ()) -> None:
    """Run the scripts in a root folder. Raises CalledProcessError, with what the script said, for one that fails."""
    place = root / PLACE.lstrip("/")
    if not place.exists():
        shutil.copytree(files, place)
    for script in scripts(only):
        say(script.name)
        subprocess.run(
            [
                "systemd-nspawn", "--quiet", f"--directory={root}", "--as-pid2", "--register=no", "--keep-unit",
                "--console=pipe", f"--bind-ro={SCRIPTS}:/mnt", f"--setenv=FILES={PLACE}",
                *(f"--setenv={name}={value}" for name, value in settings.items()), "/bin/bash", f"/mnt/{script.name}",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
            # /tmp is a folder of the root, where the files are, and not one in memory.
            env={**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"},
        )  # fmt: skip


def assignment(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main() -> int:
    """0 if all went well; 1 with a line on standard error if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version", help="print the gallery's version")
    files = commands.add_parser("files", help="gather what the scripts need")
    files.add_argument("--arch", action="append", choices=ARCHES, help="for this one only (default: all)")
    files.add_argument("--output", type=Path, default=ROOT / "packer/build", help="default: packer/build")
    files.add_argument("--compress", choices=("xz", "none"), default="xz", help="none: for a test, in a moment")
    files.add_argument("--wheels", type=Path, help="keep downloaded wheels of relay's packages here")
    baking = commands.add_parser("bake", help="run the scripts in a root folder")
    baking.add_argument("root", type=Path)
    baking.add_argument("--files", type=Path, help="default: packer/build/ARCH of this machine")
    baking.add_argument("--image", choices=IMAGES, default="relay")
    baking.add_argument("--set", action="append", type=assignment, default=[], help="a script's variable, NAME=VALUE")
    baking.add_argument("--only", default="", help="numbers of scripts: 20,40")
    options = parser.parse_args()
    try:
        if options.command == "version":
            print(gallery_version(version()))
        elif options.command == "files":
            for arch in options.arch or ARCHES:
                print(gather(arch, options.output.resolve(), options.compress, options.wheels))
        else:
            found = options.files or ROOT / "packer/build" / os.uname().machine
            named = {"IMAGE": options.image, "IMAGE_VERSION": gallery_version(version()), **dict(options.set)}
            bake(options.root.resolve(), found, named, [number for number in options.only.split(",") if number])
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(error.stdout, f"error: {error.cmd[-1]} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
