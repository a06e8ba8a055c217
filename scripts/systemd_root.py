"""Makes the root of the virtual systemd machine in which tests/packaging starts relay's units, once; prints its folder.

    python scripts/systemd_root.py [--again]

It is the Debian release that has this Python, for the packages of this environment are used in it as they are, and is
kept in $XDG_CACHE_HOME/relay-tests (~/.cache/relay-tests). Needs root, mmdebstrap and a Debian mirror; takes a minute
and 250 MB. Exit status 1 with a line on standard error if it cannot be had; tests are then skipped with that line.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}  # Debian's, by their Python
PACKAGES = "systemd,systemd-sysv,python3,iproute2,procps"


class Failed(Exception):
    """It cannot be had, and why."""


def cache() -> Path:
    """Where it is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relay-tests"


def provide(*, again: bool = False) -> Path:
    """The root; made if it is not there, was made by another recipe, or `again`. Raises Failed."""
    version = sys.version_info[:2]
    release = RELEASES.get(version)
    if release is None:
        raise Failed("no Debian release has Python {}.{}".format(*version))
    if os.geteuid() != 0:
        raise Failed("making a root for a virtual machine needs root")
    if shutil.which("mmdebstrap") is None:
        raise Failed("no mmdebstrap (make deps installs it)")
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    root, stamp = folder / release, folder / f"{release}.recipe"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side want it at the same time
        if not again and root.is_dir() and stamp.exists() and stamp.read_text() == PACKAGES:
            return root
        stamp.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        print(f"==> making a root of Debian {release} with mmdebstrap (a minute)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", release, f"{place}/root"]
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
            if done.returncode:
                raise Failed(f"mmdebstrap: {(done.stdout.strip().splitlines() or ['failed'])[-1]}")
            Path(place, "root").rename(root)
        stamp.write_text(PACKAGES)
    return root


def main() -> int:
    """0 if it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="even if it is there")
    try:
        print(provide(again=parser.parse_args().again))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
