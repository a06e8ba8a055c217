"""Makes the root of the virtual systemd machine in which tests/packaging starts relay's units, once; prints its folder.

    python scripts/systemd_root.py [--again] [--release RELEASE]

Without a release it is the one of Debian that has this Python, for the packages of this environment are used in it as
they are. It is kept in $XDG_CACHE_HOME/relay-tests (~/.cache/relay-tests). Needs root, mmdebstrap and a mirror; takes
a minute and 250 MB. Exit status 1 with a line on standard error if it cannot be had; tests are then skipped with that
line.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}  # Debian's, by their Python
PACKAGES = "systemd,systemd-sysv,python3,iproute2,procps"
UBUNTU = {"noble"}
UBUNTU_MIRROR = "http://archive.ubuntu.com/ubuntu"
# What stands in for the image of Ubuntu 24.04 on Azure, which packer/ starts from: of that image's packages those that
# listen, run at boot or are removed again, and the kernel.
AZURE = "noble-azure"
AZURE_PACKAGES = (
    f"{PACKAGES},apparmor,apport,apt,apt-utils,ca-certificates,chrony,cloud-init,cron,curl,dbus,ftp,kmod,"
    "libpam-systemd,linux-image-azure,locales,logrotate,needrestart,netplan.io,openssh-server,openssl,rsync,rsyslog,"
    "sudo,telnet,unattended-upgrades,walinuxagent"
)
AZURE_POCKETS = ("noble", "noble-updates", "noble-security")
# Debian has no package of Ubuntu's keys; theirs is taken for what this hash says it is.
UBUNTU_KEYS = (
    f"{UBUNTU_MIRROR}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb",
    "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8",
)


class Failed(Exception):
    """It cannot be had, and why."""


def cache() -> Path:
    """Where it is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relay-tests"


def ubuntu(folder: Path) -> list[str]:
    """Arguments of mmdebstrap for a release of Ubuntu. Raises Failed."""
    url, wanted = UBUNTU_KEYS
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # http, and the hash is compared
            content: bytes = answer.read()
    except OSError as error:
        raise Failed(f"{url}: {error}") from error
    if hashlib.sha256(content).hexdigest() != wanted:
        raise Failed(f"{url} is not what it was")
    keys = folder / "keys.deb"
    keys.write_bytes(content)
    subprocess.run(["dpkg-deb", "--extract", str(keys), str(folder / "keys")], check=True)
    return [f"--keyring={folder}/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg"]


def provide(release: str | None = None, *, again: bool = False) -> Path:
    """The root; made if it is not there, was made by another recipe, or `again`. Raises Failed."""
    version = sys.version_info[:2]
    release = release or RELEASES.get(version)
    if release is None:
        raise Failed("no Debian release has Python {}.{}".format(*version))
    if os.geteuid() != 0:
        raise Failed("making a root for a virtual machine needs root")
    if shutil.which("mmdebstrap") is None:
        raise Failed("no mmdebstrap (make deps installs it)")
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    root, stamp = folder / release, folder / f"{release}.recipe"
    packages = AZURE_PACKAGES if release == AZURE else PACKAGES
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side want it at the same time
        if not again and root.is_dir() and stamp.exists() and stamp.read_text() == packages:
            return root
        stamp.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        print(f"==> making a root of {release} with mmdebstrap (a minute)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"]
            if release == AZURE:
                command += [*ubuntu(Path(place)), "noble", f"{place}/root"]
                command += [f"deb {UBUNTU_MIRROR} {pocket} main universe" for pocket in AZURE_POCKETS]
            elif release in UBUNTU:  # where apt is no part of the smallest variant
                command += ["--include=apt", *ubuntu(Path(place)), release, f"{place}/root", UBUNTU_MIRROR]
            else:
                command += [release, f"{place}/root"]
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
            if done.returncode:
                raise Failed(f"mmdebstrap: {(done.stdout.strip().splitlines() or ['failed'])[-1]}")
            Path(place, "root").rename(root)
        stamp.write_text(packages)
    return root


def main() -> int:
    """0 if it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="even if it is there")
    parser.add_argument(
        "--release", choices=(*RELEASES.values(), *sorted(UBUNTU), AZURE), help="another than this Python's"
    )
    options = parser.parse_args()
    try:
        print(provide(options.release, again=options.again))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
