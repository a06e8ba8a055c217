"""Checks that this commit can be released, builds what a release consists of, and tags it; pushes nothing.

    python -m scripts.release VERSION [--dry-run]

All problems that can be seen without building are named at once. The wheel and the source archive are built twice, from
two copies of the commit, and have to be the same bytes; the wheel is installed beside the locked releases in a fresh
environment, where `relay --version` has to say the version. Then the tag `vVERSION` is made, annotated with the section
of CHANGELOG.md. docs/release.md has the steps before and after.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from relay.settings.names import RENAMED, Renamed

ROOT = Path(__file__).resolve().parents[1]
CHART = "deploy/helm/relay/Chart.yaml"
PLACEHOLDER = "OWNER"  # of the repository; in pyproject.toml's addresses and the Debian package's maintainer
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:(a|b|rc)(0|[1-9]\d*))?")


def run(command: Sequence[str | Path], folder: Path = ROOT, environ: Mapping[str, str] | None = None) -> str:
    """What a program writes to standard output. Where it fails, its output is shown and this program ends."""
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **(environ or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="", end="", file=sys.stderr)
        raise SystemExit(f"error: {' '.join(words)}: exit status {done.returncode}")
    return done.stdout.strip()


def git(*arguments: str) -> str:
    """What git writes to standard output."""
    return run(["git", *arguments])


def order(version: str) -> tuple[int, ...]:
    """A key that sorts versions; 1.0.0rc1 comes before 1.0.0. Raises ValueError for what is none."""
    match = VERSION.fullmatch(version)
    if match is None:
        raise ValueError(version)
    major, minor, patch, kind, number = match.groups()
    stage = ("a", "b", "rc").index(kind) if kind else 3
    return (int(major), int(minor), int(patch), stage, int(number or 0))


def sections(changelog: str) -> dict[str, str]:
    """The sections of CHANGELOG.md by heading, in its order."""
    parts = re.split(r"^## +(.+?) *$", changelog, flags=re.MULTILINE)
    return {heading: text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def changelog_problems(version: str, changelog: str, today: datetime.date) -> list[str]:
    """What is wrong with the changelog for a release of this version."""
    found = sections(changelog)
    problems = []
    if found.get("Unreleased"):
        problems.append("CHANGELOG.md: `## Unreleased` still has entries; they belong to the release")
    dated = {heading: text for heading, text in found.items() if heading.split(" ")[0] == version}
    if not dated:
        return [*problems, f"CHANGELOG.md: no section `## {version} - {today}`"]
    heading, text = next(iter(dated.items()))
    match = re.fullmatch(re.escape(version) + r" - (\d{4}-\d\d-\d\d)", heading)
    try:
        date = datetime.date.fromisoformat(match[1]) if match else None
    except ValueError:
        date = None
    if date is None:
        problems.append(f"CHANGELOG.md: `## {heading}` has no date; `## {version} - {today}`")
    elif date > today:
        problems.append(f"CHANGELOG.md: `## {heading}` is in the future")
    if not text:
        problems.append(f"CHANGELOG.md: `## {heading}` is empty")
    return problems


def problems(version: str, today: datetime.date) -> list[str]:
    """What keeps this commit from being released, as far as that can be seen without building it."""
    try:
        key = order(version)
    except ValueError:
        return [f"{version!r} is no version; one is like 0.1.0 or 0.2.0rc1"]
    found = []
    if changes := git("status", "--porcelain"):
        found.append(f"the working tree is not clean: {', '.join(line[3:] for line in changes.splitlines())}")
    text = (ROOT / "relay/__init__.py").read_text()
    if f'__version__ = "{version}"' not in text.splitlines():
        found.append(f"relay/__init__.py: __version__ is not {version}")
    found += changelog_problems(version, (ROOT / "CHANGELOG.md").read_text(), today)
    for tag in git("tag", "--list", "v*").split():
        if VERSION.fullmatch(tag[1:]) and order(tag[1:]) >= key:
            found.append(f"there is a tag {tag}, which is not older than v{version}")
    for name, number in re.findall(r'^(version|appVersion): "?([^"\n]+)', (ROOT / CHART).read_text(), re.MULTILINE):
        wanted = re.sub(r"(?<=\d)(?=a|b|rc)", "-", version) if name == "version" else version  # SemVer, for Helm
        if number != wanted:
            found.append(f"{CHART}: {name} is {number}, not {wanted}")
    found += old_name_problems(version, RENAMED)
    found += placeholders(ROOT)
    return found


def old_name_problems(version: str, renamed: Mapping[str, Renamed]) -> list[str]:
    """The deprecated names of settings that this version was to end."""
    return [
        f"relay/settings/names.py: {old} ends with version {to.until}: take its line out"
        for old, to in renamed.items()
        if order(to.until) <= order(version)
    ]


def placeholders(tree: Path) -> list[str]:
    """Lines of what is published that still name nobody."""
    files = [tree / "pyproject.toml", *sorted(path for path in (tree / "deploy").rglob("*") if path.is_file())]
    return [
        f"{path.relative_to(tree)}:{number}: {PLACEHOLDER} is a placeholder: write whose repository or address it is"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(rf"\b{PLACEHOLDER}\b", line.partition("#")[0])
    ]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def build(folder: Path) -> Path:
    """Build wheel and source archive of the commit, from a copy of it; the folder that has them."""
    source, output = folder / "source", folder / "dist"
    source.mkdir(parents=True)
    archive = folder / "source.tar"
    git("archive", "--format=tar", f"--output={archive}", "HEAD")
    run(["tar", "--extract", "--file", archive], source)
    epoch = git("log", "-1", "--format=%ct")  # seconds since 1970: file times in the archives
    run([sys.executable, "-m", "hatchling", "build", "-d", output], source, {"SOURCE_DATE_EPOCH": epoch})
    return output


def install(wheel: Path, folder: Path) -> str:
    """Install the wheel and what requirements/run.txt locks in a fresh environment; what `relay --version` says."""
    run([sys.executable, "-m", "venv", folder])
    pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    run([*pip, "--require-hashes", "--requirement", "requirements/run.txt"])
    run([*pip, "--no-index", wheel])
    return run([folder / "bin/relay", "--version"], folder)


def main() -> int:
    """Check, build and tag; the exit status."""
    parser = argparse.ArgumentParser(prog="make release", description=str(__doc__).splitlines()[0])
    parser.add_argument("version", help="like 0.1.0")
    parser.add_argument("--dry-run", action="store_true", help="everything but the tag")
    options = parser.parse_args()
    version, tag = options.version, f"v{options.version}"
    found = problems(version, datetime.datetime.now(datetime.UTC).date())
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        return 1
    with tempfile.TemporaryDirectory(prefix="relay-release-") as directory:
        print("==> wheel and source archive, twice", flush=True)
        first, second = (build(Path(directory) / name) for name in ("one", "another-folder"))
        if digests(first) != digests(second):
            print(f"error: two builds differ: {digests(first)} {digests(second)}", file=sys.stderr)
            return 1
        (wheel,) = first.glob("*.whl")
        print("==> the wheel in a fresh environment (about a minute)", flush=True)
        said = install(wheel, Path(directory) / "venv")
        if said != f"relay {version}":
            print(f"error: the installed wheel is {said!r}", file=sys.stderr)
            return 1
        shutil.copytree(first, ROOT / "dist", dirs_exist_ok=True)
        for name, digest in digests(first).items():
            print(f"{digest}  dist/{name}")
    if options.dry_run:
        print(f"==> everything is there; no tag (--dry-run). This commit would be {tag}.")
        return 0
    notes = sections((ROOT / "CHANGELOG.md").read_text())
    message = next(text for heading, text in notes.items() if heading.split(" ")[0] == version)
    git("tag", "--annotate", "--cleanup=verbatim", "--message", f"relay {version}\n\n{message}", tag)
    print(f"==> tagged {tag}, here only; git push origin main {tag} publishes it, git tag --delete {tag} takes it back")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
