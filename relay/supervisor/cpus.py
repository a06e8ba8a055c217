"""How many CPUs this process may use: its affinity, cut by the CPU quota of its cgroup and of every cgroup above.

A container or a systemd unit with `CPUQuota=` still sees all CPUs of the machine; as many workers would compete for a
fraction of them and be throttled together. Only files are read (cgroups(7), the kernel's cgroup-v2.rst and
sched-bwc.rst); nothing is cached, nothing is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process can keep busy, at least 1; a quota of one and a half is 2.

    `root` is where /proc and /sys are found. A file that cannot be read or parsed sets no bound. Raises nothing.
    """
    return max(1, min([_affinity(), *_quotas(root)]))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this system, e.g. macOS
        return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[int]:
    """The quotas in whole CPUs, rounded up, of every cgroup that this process is in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", path):
                yield from _ceil(*_fields(_read(folder / "cpu.max")))
        elif "cpu" in controllers.split(","):
            # The mount has its controllers' names joined, with a symbolic link for each; either may be missing.
            for mount in {controllers, "cpu"}:
                for folder in _upwards(root / "sys/fs/cgroup" / mount, path):
                    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
                    yield from _ceil(quota.strip(), period.strip())


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of `path` below `mount`, then its parents up to `mount`.

    In a container the path may be the host's, which does not exist below the container's mount; the quota is then in
    the mount's top folder. A process outside its cgroup namespace has a path that begins with `/..`.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _fields(text: str) -> tuple[str, str]:
    quota, _, period = text.strip().partition(" ")
    return quota, period


def _ceil(quota: str, period: str) -> Iterator[int]:
    """The quota in whole CPUs, rounded up; nothing without one: `max` in v2, -1 in v1, or no such file."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield -(-int(quota) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
