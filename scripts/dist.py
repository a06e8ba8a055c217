"""Builds what a release consists of: wheel, source archive, and an install bundle for each architecture.

    python -m scripts.dist [--output DIRECTORY] [--arch ARCH]... [--python VERSION]...

The same commit gives the same bytes, in whatever folder it is built: times are the commit's, entries are sorted, and
every wheel of a dependency is the one whose hash requirements/run.txt has. What is not committed is not built in, but
for files of the working tree itself: a tree with changes says so and takes their time from the commit all the same.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "relay-passthrough"  # on package indexes, where `relay` is somebody else's
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ARCHES = ("x86_64", "aarch64")
# The oldest C library that every locked wheel runs on decides; pip takes the first tag that fits.
GLIBC = ("2014", "_2_17", "_2_24", "_2_26", "_2_27", "_2_28")
LOCKS = ("run", "install")
TREE = {  # in the bundle, from the repository
    "install.sh": "deploy/bundle/install.sh",
    "checked.sh": "deploy/shared/checked.sh",
    "relay.toml": "deploy/bundle/relay.toml",
    "systemd/relay.service": "deploy/systemd/relay.service",
    "systemd/relay.socket": "deploy/systemd/relay.socket",
    "systemd/relay-settings.service": "deploy/systemd/relay-settings.service",
    "systemd/relay-settings.timer": "deploy/systemd/relay-settings.timer",
    "systemd/relay-sysctl.conf": "deploy/systemd/relay-sysctl.conf",
    "systemd/relay-journald.conf": "deploy/systemd/relay-journald.conf",
    "LICENSE": "LICENSE",
}


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"==> {text}", flush=True)


def run(*command: str, **environment: str) -> str:
    """Run a program; what it writes to standard output. Its errors end this one."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
    return done.stdout.strip()


def version() -> str:
    """The version of this tree, from relay/__init__.py, without importing it."""
    for line in (ROOT / "relay/__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise SystemExit("error: relay/__init__.py has no __version__")


def commit_time() -> str:
    """Seconds since 1970 of the commit; SOURCE_DATE_EPOCH where that is set, as in a source archive."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        say("note: the working tree has changes that are in no commit")
    return run("git", "log", "-1", "--format=%ct")


def build(output: Path, epoch: str) -> tuple[Path, Path]:
    """Wheel and source archive."""
    say("wheel and source archive")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(output), SOURCE_DATE_EPOCH=epoch)
    stem = f"{NAME.replace('-', '_')}-{version()}"
    return output / f"{stem}-py3-none-any.whl", output / f"{stem}.tar.gz"


def target(arch: str, python: str) -> tuple[str, ...]:
    """Arguments of pip that choose wheels for one Python on one architecture."""
    tag = "cp" + python.replace(".", "")
    return (
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--abi={tag}", "--abi=abi3", "--abi=none"),
        *(f"--platform=manylinux{glibc}_{arch}" for glibc in GLIBC),
    )


def download(arch: str, pythons: Sequence[str], into: Path) -> None:
    """The locked wheels of every run-time dependency for one architecture, all Pythons together."""
    for python in pythons:
        say(f"wheels for {arch}, Python {python}")
        for lock in LOCKS:
            run(
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("--require-hashes", *target(arch, python), f"--dest={into}"),
                *("--requirement", f"requirements/{lock}.txt"),
            )


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pinned(wheels: Sequence[Path]) -> str:
    """A requirements file that names every wheel by version and hash: what pip may install, and no more."""
    hashes: dict[str, list[str]] = {}
    for wheel in sorted(wheels):
        project, number, *_ = wheel.name.split("-")
        hashes.setdefault(f"{project.replace('_', '-')}=={number}", []).append(f"--hash=sha256:{digest(wheel)}")
    return "".join(f"{name} {' '.join(found)}\n" for name, found in hashes.items() if not name.startswith("pip=="))


def members(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path


def archive(folder: Path, target: Path, epoch: int) -> None:
    """A tar.gz of a folder that depends on its contents alone: sorted, owned by root, all of one time."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in members(folder):
            info = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder)}")
            info.size, info.mtime = path.stat().st_size, epoch
            info.mode = 0o755 if path.suffix == ".sh" else 0o644
            info.uname = info.gname = "root"
            with path.open("rb") as file:
                tar.addfile(info, file)
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, epoch) as packed:
        packed.write(plain.getvalue())


def bundle(arch: str, pythons: Sequence[str], wheel: Path, output: Path, epoch: str) -> Path:
    """The install bundle of one architecture."""
    target = output / f"relay-{version()}-linux-{arch}.tar.gz"
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / target.name.removesuffix(".tar.gz")
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        download(arch, pythons, wheels)
        shutil.copy(wheel, wheels)
        for inside, source in TREE.items():
            (folder / inside).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder / inside)
        (folder / "requirements.txt").write_text(pinned(list(wheels.iterdir())))
        (folder / "release").write_text(f"VERSION={version()}\nARCH={arch}\nPYTHONS='{' '.join(pythons)}'\n")
        sums = "".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in members(folder))
        (folder / "SHA256SUMS").write_text(sums)
        say(f"{target.name}: {len(list(wheels.iterdir()))} wheels")
        archive(folder, target, int(epoch))
    return target


def publish(made: Sequence[Path], output: Path) -> None:
    """Name what was built, and add it to the folder's checksum file."""
    sums = output / "SHA256SUMS"
    lines = {line.split()[1]: line for line in sums.read_text().splitlines()} if sums.exists() else {}
    lines |= {path.name: f"{digest(path)}  {path.name}" for path in made}
    sums.write_text("".join(f"{lines[name]}\n" for name in sorted(lines) if (output / name).exists()))
    for path in made:
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
    print(f"verify a download: sha256sum --check --ignore-missing {sums.name}")


def main() -> int:
    """Build everything; the exit status."""
    parser = argparse.ArgumentParser(description="build wheel, source archive and install bundles")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where they go (default: dist/)")
    parser.add_argument("--arch", action="append", choices=ARCHES, help="for this one only; may be repeated")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="for this one only; may be repeated")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    epoch = commit_time()
    wheel, source = build(options.output.resolve(), epoch)
    made = [wheel, source]
    made += [bundle(arch, options.python or PYTHONS, wheel, options.output, epoch) for arch in options.arch or ARCHES]
    publish(made, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
