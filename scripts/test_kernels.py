"""Runs the engines' conformance suite and a soak on the kernels of Debian releases, each in a virtual machine.

    python -m scripts.test_kernels [--release trixie-arm64] [--minutes 2]        (or: make test-kernels)

Each machine is a kernel and an archive of files that it keeps in memory: the release's root, the locked packages for
its Python, and this working tree as it is. It has no disk and no network but loopback. Roots and packages are kept in
.kernels/ (delete a folder there for a newer kernel). /dev/kvm is used if a kernel boots with it; without it QEMU
emulates the processor: some fifteen times slower, which the time limits allow for, and the suite finds more orders of
events. Ends with a table, also in .kernels/table.md; exit status 0 only if everything ran and passed. The machines are
x86-64, for which this has to run on one; `--release trixie-arm64` is always emulated.

What the machines are made of is in `kernel_images.py`; what runs inside is `test_kernels_inside.py`.
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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.kernel_images import (
    AMD64,
    RELEASES,
    Failed,
    Machine,
    Release,
    is_foreign,
    provide_packages,
    provide_project,
    provide_root,
    provide_skeleton,
    say,
)

CACHE = Path(".kernels")
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "mmdebstrap": "mmdebstrap",
    "bsdtar": "libarchive-tools",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # mmdebstrap checks the packages with it
BOOT_SECONDS = {"kvm": 30, "tcg": 300}  # after which a machine that has said nothing does not boot


def look_for_tools(releases: list[Release]) -> None:
    """Raises Failed if something is missing."""
    if platform.machine() != "x86_64" and any(release.machine is AMD64 for release in releases):
        raise Failed("the machines are x86-64, and so must be this one (--release trixie-arm64 is emulated)")
    unused = {tool for tool in TOOLS if tool.startswith("qemu")} - {release.machine.command[0] for release in releases}
    missing = [package for tool, package in TOOLS.items() if tool not in unused and not shutil.which(tool)]
    missing += [] if KEYRING.exists() else ["debian-archive-keyring"]
    if missing:
        raise Failed(f"not everything is there; as root: apt-get install --no-install-recommends {' '.join(missing)}")


def boot(folder: Path, machine: Machine, initrd: Path, accelerator: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Run a machine until it is off; what it tells, as it comes. Raises Failed if it says nothing, or goes on."""
    told = folder / "told.jsonl"
    told.write_bytes(b"")
    process = subprocess.Popen(
        [
            *machine.command, "-accel", accelerator, "-smp", "2", "-m", "4096", "-nodefaults",
            "-no-user-config", "-no-reboot", "-display", "none", "-serial", f"file:{folder / 'console.log'}",
            *(part.format(told) for part in machine.port), "-kernel", str(folder / "vmlinuz"), "-initrd", str(initrd),
            "-append", f"console={machine.console} rdinit=/relay-init panic=-1 quiet",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    try:
        with told.open(encoding="utf-8", errors="replace") as lines:
            text, anything = "", False
            while True:
                over = process.poll() is not None
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
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test(release: Release, options: argparse.Namespace) -> dict[str, Any]:
    """Everything for one release; what its machine told, by name."""
    folder = CACHE / release.name
    folder.mkdir(parents=True, exist_ok=True)
    provide_root(release, folder)
    provide_packages(release, folder)
    provide_skeleton(folder / "skeleton.cpio", release.machine)
    initrd = folder / "initrd"
    provide_project(folder / "project.cpio", release.machine, options.minutes, options.connections)
    with initrd.open("wb") as whole:
        for name in ("root", "skeleton", "packages", "project"):
            whole.write((folder / f"{name}.cpio").read_bytes())
    found: dict[str, Any] = {}
    kvm = not is_foreign(release.machine) and os.access("/dev/kvm", os.R_OK | os.W_OK) and not options.emulate
    accelerators = ["kvm", "tcg"] if kvm else ["tcg"]
    for accelerator in accelerators:
        how = "with KVM: some minutes" if accelerator == "kvm" else "emulated: a quarter of an hour, or several"
        say(f"{release.name}: booting ({how}; console: {folder / 'console.log'})")
        try:
            for news in boot(folder, release.machine, initrd, accelerator, options.limit * 60):
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
    parser.add_argument(
        "--release", choices=[release.name for release in RELEASES], help="only this one (default: those for x86-64)"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="of the soak (default %(default)s)")
    parser.add_argument("--connections", type=int, default=50, help="of the soak at a time (default %(default)s)")
    parser.add_argument("--limit", type=float, default=60.0, help="minutes for one machine (default %(default)s)")
    parser.add_argument("--emulate", action="store_true", help="do not try KVM")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a machine is ended first
    os.chdir(Path(__file__).resolve().parent.parent)
    began = time.monotonic()
    try:
        wanted = [release for release in RELEASES if options.release in (None, release.name)]
        if options.release is None:
            wanted = [release for release in wanted if release.machine is AMD64]
        look_for_tools(wanted)
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
