"""Runs the engines' conformance suite and a soak on the kernels of Debian releases, each in a virtual machine.

    python scripts/test_kernels.py [--release trixie] [--minutes 2]        (or: make test-kernels)

Each machine is a kernel and an archive of files that it keeps in memory: the release's root, the locked packages for
its Python, and this working tree as it is. It has no disk and no network but loopback. Roots and packages are kept in
.kernels/ (delete a folder there for a newer kernel). /dev/kvm is used if a kernel boots with it; without it QEMU
emulates the processor: some fifteen times slower, which the time limits allow for, and the suite finds more orders of
events. Ends with a table, also in .kernels/table.md; exit status 0 only if everything ran and passed.

What runs inside is `test_kernels_inside.py`, started by INIT.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CACHE = Path(".kernels")
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "bsdtar": "libarchive-tools"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # mmdebstrap checks the packages with it
# Of the root and of the packages the machine needs less than there is: what is left out need not fit into memory.
ROOT_WITHOUT = ("./boot", "./usr/lib/modules", "./usr/lib/udev", "./usr/share/doc", "./usr/share/locale")
PACKAGES_WITHOUT = ("*-packages/bin", "*-packages/mypy", "*-packages/mypyc", "*__mypyc*", "*-packages/grimp")
WHEELS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")  # older than either release's glibc
BOOT_SECONDS = {"kvm": 30, "tcg": 300}  # after which a machine that has said nothing does not boot
INIT = """\
#!/bin/sh
mount -t proc proc /proc && mount -t sysfs sys /sys
mount -t devpts devpts /dev/pts && mount -t tmpfs shm /dev/shm && mknod /dev/ttyS1 c 4 65
ip link set lo up
ulimit -n 65536
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
cd /relay
TEST_PATIENCE=10 PYTHONPATH=/relay python3 scripts/test_kernels_inside.py {minutes} {connections}
echo o >/proc/sysrq-trigger # power off; the end of this script would be a panic
sleep 60
"""


class Release(NamedTuple):
    """A Debian release and the Python that it has."""

    name: str
    python: str


RELEASES = (Release("bookworm", "3.11"), Release("trixie", "3.13"))


class Failed(Exception):
    """A step that did not work, and what to do about it."""


def say(text: str) -> None:
    """One line about what goes on."""
    print(f"==> {text}", flush=True)


def run(*command: str | Path, hint: str = "", **environment: str) -> None:
    """Run a command silently. Raises Failed with the end of its output."""
    done = subprocess.run(
        command, check=False, env=os.environ | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{Path(command[0]).name} failed{hint}:\n" + "\n".join(done.stdout.splitlines()[-15:]))


def look_for_tools() -> None:
    """Raises Failed if something is missing."""
    if platform.machine() != "x86_64":
        raise Failed("the machines are x86-64, and so must be this one")
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    missing += [] if KEYRING.exists() else ["debian-archive-keyring"]
    if missing:
        raise Failed(f"not everything is there; as root: apt-get install --no-install-recommends {' '.join(missing)}")


def archive(folder: str, source: str, target: Path, without: tuple[str, ...] = ()) -> None:
    """An initramfs archive (cpio, newc) of a folder or, with `@` before its name, of another archive."""
    leave_out = [argument for pattern in without for argument in ("--exclude", pattern)]
    run("bsdtar", "--format=newc", "--uid=0", "--gid=0", *leave_out, "-cf", target, "-C", folder, source)


def is_made(stamp: Path, recipe: str) -> bool:
    """Whether something was made by this recipe; if not, it is about to be."""
    if stamp.exists() and stamp.read_text() == recipe:
        return True
    stamp.unlink(missing_ok=True)
    return False


def provide_root(release: Release, folder: Path) -> None:
    """The release's kernel and root, once."""
    packages = f"linux-image-cloud-amd64,python3,libpython{release.python}-testsuite,netbase,iproute2"
    stamp = folder / "root.recipe"
    if is_made(stamp, packages):
        return
    say(f"{release.name}: making a root with mmdebstrap (a minute, longer with a slow mirror)")
    with tempfile.TemporaryDirectory(prefix="relay-root-") as place:
        # INITRD=No: the kernel's package makes no initrd of its own, initramfs-tools(7).
        run(
            "mmdebstrap", "--variant=minbase", f"--include={packages}", release.name, f"{place}/root.tar", INITRD="No",
            hint=" (without root it needs the package uidmap, and user namespaces that are allowed)",
        )  # fmt: skip
        archive(place, "@root.tar", folder / "root.cpio", ROOT_WITHOUT)
        run("bsdtar", "-xf", f"{place}/root.tar", "-C", place, "./boot/vmlinuz-*")
        (kernel,) = Path(place, "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, folder / "vmlinuz")
    stamp.write_text(packages)


def provide_packages(release: Release, folder: Path) -> None:
    """The locked packages for the release's Python, again when the lock has changed."""
    home = f"usr/local/lib/python{release.python}/dist-packages"  # where Debian's Python looks
    stamp, recipe = folder / "packages.recipe", f"# to {home}\n{Path('requirements/dev.txt').read_text()}"
    if is_made(stamp, recipe):
        return
    say(f"{release.name}: fetching the locked packages for Python {release.python} (some seconds)")
    with tempfile.TemporaryDirectory(prefix="relay-packages-") as place:
        run(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
            "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile", "--target", f"{place}/{home}",
            "--python-version", release.python, *(f"--platform={tag}" for tag in WHEELS),
            "--requirement", "requirements/dev.txt",
        )  # fmt: skip
        archive(place, ".", folder / "packages.cpio", PACKAGES_WITHOUT)
    stamp.write_text(recipe)


def provide_project(target: Path, options: argparse.Namespace) -> None:
    """This working tree, and what the machine starts with."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, stdout=subprocess.PIPE
    )
    with tempfile.TemporaryDirectory(prefix="relay-project-") as place:
        for name in filter(os.path.isfile, os.fsdecode(listed.stdout).split("\0")):
            copy = Path(place, "relay", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, copy)
        init = Path(place, "relay-init")
        init.write_text(INIT.format(minutes=options.minutes, connections=options.connections))
        init.chmod(0o755)
        archive(place, ".", target)


def boot(folder: Path, initrd: Path, accelerator: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Run a machine until it is off; what it tells, as it comes. Raises Failed if it says nothing, or goes on."""
    told = folder / "told.jsonl"
    told.write_bytes(b"")
    machine = subprocess.Popen(
        [
            "qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", "4096", "-nodefaults",
            "-no-user-config", "-no-reboot", "-display", "none", "-serial", f"file:{folder / 'console.log'}",
            "-serial", f"file:{told}", "-kernel", str(folder / "vmlinuz"), "-initrd", str(initrd),
            "-append", "console=ttyS0 rdinit=/relay-init panic=-1 quiet",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    try:
        with told.open(encoding="utf-8", errors="replace") as lines:
            text, anything = "", False
            while True:
                over = machine.poll() is not None
                text += lines.read()
                *whole, text = text.split("\n")
                for line in whole:
                    anything = True
                    yield json.loads(line)
                if over and anything:
                    return
                if over:
                    raise Failed("it ended without a word")
                passed = time.monotonic() - began
                if passed > (seconds if anything else BOOT_SECONDS[accelerator]):
                    raise Failed(f"{'not over' if anything else 'no sign of life'} after {passed:.0f} s")
                time.sleep(0.5)
    finally:
        machine.terminate()
        try:
            machine.wait(10)
        except subprocess.TimeoutExpired:
            machine.kill()
            machine.wait()


def test(release: Release, options: argparse.Namespace) -> dict[str, Any]:
    """Everything for one release; what its machine told, by name."""
    folder = CACHE / release.name
    folder.mkdir(parents=True, exist_ok=True)
    provide_root(release, folder)
    provide_packages(release, folder)
    initrd = folder / "initrd"
    provide_project(folder / "project.cpio", options)
    with initrd.open("wb") as whole:
        for name in ("root", "packages", "project"):
            whole.write((folder / f"{name}.cpio").read_bytes())
    found: dict[str, Any] = {}
    accelerators = ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) and not options.emulate else ["tcg"]
    for accelerator in accelerators:
        how = "with KVM: some minutes" if accelerator == "kvm" else "emulated: a quarter of an hour, or several"
        say(f"{release.name}: booting ({how}; console: {folder / 'console.log'})")
        try:
            for news in boot(folder, initrd, accelerator, options.limit * 60):
                found |= news
                for key, value in news.items():
                    say(f"{release.name}: {key}: {value}")
            return found
        except Failed as error:
            say(f"{release.name}: {error}")
            if found:
                return found
            options.emulate = True  # for the next one as well: /dev/kvm is there and does not work
    return found


def good(found: dict[str, Any]) -> bool:
    """Whether a machine told of everything, and of nothing bad."""
    return bool(found.get("suite")) and not found.get("failed") and str(found.get("soak")).startswith("passed")


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of what the machines told."""
    engines = sorted({engine for found in results.values() for engine in found.get("suite", {})})
    rows = [["kernel", "Python", "relay check", *(f"conformance: {engine}" for engine in engines), "soak"]]
    rows.append(["---"] * len(rows[0]))
    for name, found in results.items():
        suite = found.get("suite", {})
        rows.append(
            [found.get("kernel", f"{name}: did not boot"), found.get("python", ""), found.get("check", "")]
            + [suite.get(engine, "-" if suite else "did not end") for engine in engines]
            + [found.get("soak", "did not end")]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    """0 if everything ran and passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", choices=[release.name for release in RELEASES], help="only this one")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the soak (default %(default)s)")
    parser.add_argument("--connections", type=int, default=50, help="of the soak at a time (default %(default)s)")
    parser.add_argument("--limit", type=float, default=60.0, help="minutes for one machine (default %(default)s)")
    parser.add_argument("--emulate", action="store_true", help="do not try KVM")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a machine is ended first
    os.chdir(Path(__file__).resolve().parent.parent)
    began = time.monotonic()
    try:
        look_for_tools()
        wanted = [release for release in RELEASES if options.release in (None, release.name)]
        results = {release.name: test(release, options) for release in wanted}
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    text = table(results)
    (CACHE / "table.md").write_text(text)
    print(f"\n{text}")
    say(f"{time.monotonic() - began:.0f} s in all")
    return 0 if all(map(good, results.values())) else 1


if __name__ == "__main__":
    raise SystemExit(main())
