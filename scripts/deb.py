"""Builds the Debian package of each architecture: relay_VERSION_ARCH.deb.

    python -m scripts.deb [--output DIRECTORY] [--arch ARCH]... [--wheels DIRECTORY]

One package is for every Python that relay supports, since the one of Debian 12 is another than that of Ubuntu 24.04.
Compiled modules have the Python's version in their names, so the wheels of all of them fit into one folder:

    /usr/lib/relay/VERSION/bin/python3                      -> /usr/bin/python3
    /usr/lib/relay/VERSION/pyvenv.cfg                       makes it a virtual environment of whatever Python that is
    /usr/lib/relay/VERSION/lib/python3.N/site-packages      -> ../../site-packages, for each N
    /usr/lib/relay/VERSION/site-packages
    /usr/bin/relay

deploy/deb has the control files. The same commit gives the same bytes, as in scripts/dist.py.
"""

from __future__ import annotations

import argparse
import datetime
import email.parser
import gzip
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.dist import (
    ARCHES,
    PYTHONS,
    ROOT,
    build,
    commit_time,
    digest,
    download,
    pinned,
    publish,
    run,
    say,
    target,
    version,
)

CONTROL = ROOT / "deploy/deb"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
TREE = {  # in the package, from the repository
    "etc/relay/relay.toml": "deploy/bundle/relay.toml",
    "usr/lib/systemd/system/relay.service": "deploy/systemd/relay.service",
    "usr/lib/systemd/system/relay.socket": "deploy/systemd/relay.socket",
    "usr/lib/systemd/system/relay-settings.service": "deploy/systemd/relay-settings.service",
    "usr/lib/systemd/system/relay-settings.timer": "deploy/systemd/relay-settings.timer",
    "usr/share/doc/relay/examples/relay-sysctl.conf": "deploy/systemd/relay-sysctl.conf",
    "usr/share/doc/relay/examples/relay-journald.conf": "deploy/systemd/relay-journald.conf",
    "usr/share/doc/relay/examples/relay.rules.yml": "deploy/prometheus/relay.rules.yml",
    "usr/share/lintian/overrides/relay": "deploy/deb/lintian-overrides",
}
# Of a wheel's description, what is true of one Python's wheel alone, or of an installation that pip looks after.
DROPPED = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json", "sboms")


def debian_version() -> str:
    """This tree's version as Debian orders it: 1.0rc1 and 1.0.dev1 come before 1.0."""
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", version())


def unpack(wheels: Path, arch: str, into: Path) -> None:
    """The wheels of every Python into one folder. What differs between two of them must have the Python in its name."""
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as directory:
            requirements, packages = Path(directory, "requirements.txt"), Path(directory, "packages")
            requirements.write_text(pinned(list(wheels.glob("*.whl"))))
            run(
                *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"),
                *("--no-index", "--find-links", str(wheels), "--no-deps", "--no-compile", "--require-hashes"),
                *target(arch, python),
                *("--root-user-action=ignore", "--target", str(packages), "--requirement", str(requirements)),
            )
            merge(packages, into)


def merge(packages: Path, into: Path) -> None:
    """Add one Python's packages to those of the others."""
    for path in sorted(packages.rglob("*")):
        inside = path.relative_to(packages)
        if path.is_dir() or inside.parts[0] in ("bin", "__pycache__"):
            continue  # the programs of other packages are no part of relay
        if inside.parts[0].endswith(".dist-info") and inside.parts[1] in DROPPED:
            continue
        there = into / inside
        if there.exists():
            if digest(there) != digest(path):
                raise SystemExit(f"error: {inside} is not the same for every Python: they cannot share a folder")
        elif path.suffix == ".so" and ".cpython-3" not in path.name and ".abi3." not in path.name:
            raise SystemExit(f"error: {inside} does not say which Python it is for: they cannot share a folder")
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def environment(home: Path) -> None:
    """Make a folder that has site-packages a virtual environment of the system's Python, whichever that is."""
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for python in PYTHONS:
        (home / f"lib/python{python}").mkdir(parents=True)
        (home / f"lib/python{python}/site-packages").symlink_to("../../site-packages")


def filled(name: str, **values: str) -> str:
    """A file of deploy/deb with its @NAMES@ filled in."""
    text = (CONTROL / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def copyrights(packages: Path) -> str:
    """The licence of relay and of each package that comes with it."""
    lines = []
    for metadata in sorted(packages.glob("*.dist-info/METADATA")):
        found = email.parser.Parser().parsestr(metadata.read_text(encoding="utf-8"), headersonly=True)
        licence = found["License-Expression"] or found["License"]
        if not licence or "\n" in licence:
            classifiers = [
                one.split(" :: ")[-1] for one in found.get_all("Classifier", []) if one.startswith("License")
            ]
            licence = ", ".join(classifiers) or "see its files"
        lines.append(f"{found['Name']} {found['Version']}: {licence}\n")
    return filled("copyright", PACKAGES="".join(f"  {line}" for line in lines))


def zipped(path: Path, text: str) -> None:
    """A text, compressed as Debian's policy has it, the same whenever it is built."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as packed:
        packed.write(text.encode())


def changelog(epoch: str) -> str:
    """Debian's own: which version this is, and since when. What has changed is in CHANGELOG.md.gz beside it."""
    date = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    maintainer = re.search(r"^Maintainer: (.*)$", (CONTROL / "control").read_text(), re.MULTILINE)
    assert maintainer
    entry = f"  * relay {version()}: see CHANGELOG.md.gz in this folder."
    return f"relay ({debian_version()}) unstable; urgency=medium\n\n{entry}\n\n -- {maintainer[1]}  {date}\n"


def fill(tree: Path, wheels: Path, arch: str, epoch: str) -> None:
    """Everything that the package holds, but for its control files."""
    number = debian_version()
    home = tree / "usr/lib/relay" / number
    unpack(wheels, arch, home / "site-packages")
    environment(home)
    shutil.copyfile(ROOT / "deploy/shared/checked.sh", home / "checked.sh")
    for inside, source in TREE.items():
        (tree / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, tree / inside)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/relay").write_text(filled("relay", VERSION=number))
    documents = tree / "usr/share/doc/relay"
    (documents / "copyright").write_text(copyrights(home / "site-packages"))
    zipped(documents / "changelog.gz", changelog(epoch))
    zipped(documents / "CHANGELOG.md.gz", (ROOT / "CHANGELOG.md").read_text())


def control(tree: Path, arch: str) -> None:
    """The control files, for what is in the tree by now."""
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    values = {
        "VERSION": debian_version(),
        "ARCH": MACHINES[arch],
        # As dpkg-gencontrol counts: each file in whole kibibytes, one for each folder and link.
        "SIZE": str(sum(-(-path.stat().st_size // 1024) for path in files) + len(list(tree.rglob("*"))) - len(files)),
    }
    sums = [f"{md5(path)}  {path.relative_to(tree)}\n" for path in files if not path.is_relative_to(tree / "etc")]
    folder = tree / "DEBIAN"
    folder.mkdir()
    for name in ("control", "triggers", *SCRIPTS):
        (folder / name).write_text(filled(name, **values))
    (folder / "conffiles").write_text("/etc/relay/relay.toml\n")
    (folder / "md5sums").write_text("".join(sums))


def md5(path: Path) -> str:
    """What dpkg --verify compares: it knows no other sum."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def modes(tree: Path) -> None:
    """Permissions that do not depend on who builds."""
    programs = {tree / "usr/bin/relay", *(tree / "DEBIAN" / name for name in SCRIPTS)}
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)


def package(arch: str, wheels: Path, output: Path, epoch: str, compress: str) -> Path:
    """The package of one architecture."""
    made = output / f"relay_{debian_version()}_{MACHINES[arch]}.deb"
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "relay")
        fill(tree, wheels, arch, epoch)
        control(tree, arch)
        modes(tree)
        say(made.name)
        run("dpkg-deb", "--root-owner-group", f"-Z{compress}", "--build", str(tree), str(made), SOURCE_DATE_EPOCH=epoch)
    return made


def main() -> int:
    """Build the packages; the exit status."""
    parser = argparse.ArgumentParser(description="build Debian packages")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where they go (default: dist/)")
    parser.add_argument("--arch", action="append", choices=ARCHES, help="for this one only; may be repeated")
    parser.add_argument("--compress", choices=("xz", "none"), default="xz", help="none: for a test, in a moment")
    parser.add_argument("--wheels", type=Path, help="keep downloaded wheels here, and take what is there already")
    options = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        raise SystemExit("error: no dpkg-deb: the package is built on Debian, Ubuntu, or where the package dpkg is")
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    epoch = commit_time()
    made = []
    for arch in options.arch or ARCHES:
        with tempfile.TemporaryDirectory() as directory:
            own, wheels = Path(directory), Path(directory, "wheels")
            wheel, _ = build(own, epoch)
            gather(arch, options.wheels, wheels)
            shutil.copy(wheel, wheels)
            made.append(package(arch, wheels, output, epoch, options.compress))
    publish(made, output)
    return 0


def gather(arch: str, kept: Path | None, into: Path) -> None:
    """The wheels of the dependencies, from the package index or a folder that has them from there."""
    if kept is None:
        download(arch, PYTHONS, into)
        return
    if not (kept / arch).is_dir():
        partial = kept / f"{arch}.{os.getpid()}"
        download(arch, PYTHONS, partial)
        partial.rename(kept / arch)
    shutil.copytree(kept / arch, into)


if __name__ == "__main__":
    raise SystemExit(main())
