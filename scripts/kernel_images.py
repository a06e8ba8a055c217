"""What the machines of `test_kernels.py` are made of: kernels, roots, packages and this tree, as initramfs archives."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# Of the root and of the packages the machine needs less than there is: what is left out need not fit into memory.
ROOT_WITHOUT = ("./boot", "./usr/lib/modules", "./usr/lib/udev", "./usr/share/doc", "./usr/share/locale")
PACKAGES_WITHOUT = ("*-packages/bin", "*-packages/mypy", "*-packages/mypyc", "*__mypyc*", "*-packages/grimp")
WHEELS = ("manylinux_2_17", "manylinux2014", "manylinux_2_28")  # older than any release's glibc
INIT = """\
#!/bin/sh
mount -t proc proc /proc && mount -t sysfs sys /sys
mount -t devpts devpts /dev/pts && mount -t tmpfs shm /dev/shm && mknod /dev/{news} c 4 {minor}
{nodes}chmod 1777 /tmp
ip link set lo up
ulimit -n 65536
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
cd /relay
TEST_PATIENCE=10 PYTHONPATH=/relay NEWS=/dev/{news} python3 scripts/test_kernels_inside.py {minutes} {connections}
echo o >/proc/sysrq-trigger # power off; the end of this script would be a panic
sleep 60
"""


# What the packages of a root that nobody configures do not have: it is of another processor than this one.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "dev/fd": "/proc/self/fd"}
FOLDERS = ("proc", "sys", "run", "dev/pts", "dev/shm", "tmp", "etc")
FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
}
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "ptmx": (5, 2)}


class Machine(NamedTuple):
    """A kind of machine that QEMU knows. Its console, and the port that its results come from, are serial ports."""

    architecture: str  # Debian's name
    processor: str  # Python's
    command: tuple[str, ...]
    console: str
    news: str
    minor: int  # its number
    port: tuple[str, ...]  # arguments that make it; {} is the file


AMD64 = Machine("amd64", "x86_64", ("qemu-system-x86_64", "-cpu", "max"), "ttyS0", "ttyS1", 65, ("-serial", "file:{}"))
ARM64 = Machine(
    "arm64", "aarch64", ("qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0", "ttyS0", 64,
    ("-chardev", "file,id=news,path={}", "-device", "pci-serial,chardev=news"),
)  # fmt: skip


class Release(NamedTuple):
    """A Debian release, the Python that it has, and the machine that it is for."""

    name: str
    suite: str
    python: str
    machine: Machine


RELEASES = (
    Release("bookworm", "bookworm", "3.11", AMD64),
    Release("trixie", "trixie", "3.13", AMD64),
    Release("trixie-arm64", "trixie", "3.13", ARM64),
)


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


def is_foreign(machine: Machine) -> bool:
    """Whether its programs do not run here."""
    return machine.processor != platform.machine()


def provide_root(release: Release, folder: Path) -> None:
    """The release's kernel and root, once."""
    machine = release.machine
    packages = f"linux-image-cloud-{machine.architecture},python3,libpython{release.python}-testsuite,netbase,iproute2"
    # Packages of another processor can be unpacked here, and not configured.
    foreign = is_foreign(machine)
    how = ["--variant=extract", f"--architectures={machine.architecture}"] if foreign else ["--variant=minbase"]
    packages += ",dash,coreutils,mount,util-linux" if foreign else ""
    stamp = folder / "root.recipe"
    if is_made(stamp, packages):
        return
    say(f"{release.name}: making a root with mmdebstrap (a minute, longer with a slow mirror)")
    with tempfile.TemporaryDirectory(prefix="relay-root-") as place:
        # INITRD=No: the kernel's package makes no initrd of its own, initramfs-tools(7).
        run(
            "mmdebstrap", *how, f"--include={packages}", release.suite, f"{place}/root.tar", INITRD="No",
            hint=" (without root it needs the package uidmap, and user namespaces that are allowed)",
        )  # fmt: skip
        archive(place, "@root.tar", folder / "root.cpio", ROOT_WITHOUT)
        run("bsdtar", "-xf", f"{place}/root.tar", "-C", place, "./boot/vmlinuz-*")
        (kernel,) = Path(place, "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, folder / "vmlinuz")
    stamp.write_text(packages)


def provide_skeleton(target: Path, machine: Machine) -> None:
    """What a root that is only unpacked lacks; nothing for one that was configured."""
    with tempfile.TemporaryDirectory(prefix="relay-skeleton-") as folder:
        place = Path(folder)
        if is_foreign(machine):
            for name in FOLDERS:
                (place / name).mkdir(parents=True)
            for name, text in FILES.items():
                (place / name).write_text(text)
            for name, to in LINKS.items():
                (place / name).symlink_to(to)
        archive(folder, ".", target)


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
            "--python-version", release.python, *(f"--platform={tag}_{release.machine.processor}" for tag in WHEELS),
            "--requirement", "requirements/dev.txt",
        )  # fmt: skip
        archive(place, ".", folder / "packages.cpio", PACKAGES_WITHOUT)
    stamp.write_text(recipe)


def provide_project(target: Path, machine: Machine, minutes: float, connections: int) -> None:
    """This working tree, and what the machine starts with; so long a soak, with so many connections at a time."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, stdout=subprocess.PIPE
    )
    with tempfile.TemporaryDirectory(prefix="relay-project-") as place:
        for name in filter(os.path.isfile, os.fsdecode(listed.stdout).split("\0")):
            copy = Path(place, "relay", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, copy)
        init = Path(place, "relay-init")
        nodes = "".join(f"[ -e /dev/{name} ] || mknod -m 666 /dev/{name} c {a} {b}\n" for name, (a, b) in NODES.items())
        init.write_text(
            INIT.format(
                minutes=minutes, connections=connections, news=machine.news, minor=machine.minor, nodes=nodes
            )
        )  # fmt: skip
        init.chmod(0o755)
        archive(place, ".", target)
