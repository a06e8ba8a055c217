"""CPUs that may be used: the affinity, cut by cgroup quotas found in a tree of files as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.supervisor.cpus import usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, cgroup: str, quotas: dict[str, str]) -> Path:
    files = {f"sys/fs/cgroup/{folder}/cpu.max": f"{text}\n" for folder, text in quotas.items()}
    return tree(root, {"proc/self/cgroup": f"0::{cgroup}\n", **files})


def v1(root: Path, line: str, mount: str, quotas: dict[str, tuple[int, int]]) -> Path:
    files = {"proc/self/cgroup": f"5:memory:/elsewhere\n{line}\n1:name=systemd:/x\n"}
    for folder, (quota, period) in quotas.items():
        files[f"sys/fs/cgroup/{mount}/{folder}/cpu.cfs_quota_us"] = f"{quota}\n"
        files[f"sys/fs/cgroup/{mount}/{folder}/cpu.cfs_period_us"] = f"{period}\n"
    return tree(root, files)


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8


def test_without_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cpus(tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100001 100000", 2),
        ("100000 100000", 1),
        ("5000 100000", 1),
        ("0 100000", 1),
        ("1600000 100000", 8),
        ("30000 10000", 3),
        ("100000 0", 8),
        ("garbage", 8),
        ("", 8),
    ],
)
def test_a_v2_quota_is_rounded_up_and_at_least_one(tmp_path: Path, quota: str, cpus: int) -> None:
    assert usable_cpus(v2(tmp_path, "/system.slice/relay.service", {"system.slice/relay.service": quota})) == cpus


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    quotas = {
        "a/b/c": "600000 100000",
        "a/b": "max 100000",
        "a": "300000 100000",
        "": "max 100000",
        "z": "100000 100000",
    }
    assert usable_cpus(v2(tmp_path, "/a/b/c", quotas)) == 3


def test_in_a_container_with_its_own_namespace_the_top_folder_has_the_quota(tmp_path: Path) -> None:
    assert usable_cpus(v2(tmp_path, "/", {"": "200000 100000"})) == 2


@pytest.mark.parametrize("cgroup", ["/docker/0123abcd", "/../../other"])
def test_a_path_that_is_not_below_the_mount_falls_back_to_its_top(tmp_path: Path, cgroup: str) -> None:
    assert usable_cpus(v2(tmp_path, cgroup, {"": "200000 100000"})) == 2


def test_nothing_above_the_mount_is_taken_for_a_cgroup(tmp_path: Path) -> None:
    assert usable_cpus(v2(tmp_path, "/../other", {"": "200000 100000", "../other": "100000 100000"})) == 2


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "cpus"), [((250_000, 100_000), 3), ((-1, 100_000), 8), ((1_000, 100_000), 1)])
def test_a_v1_quota_is_found_under_either_name_of_the_mount(
    tmp_path: Path, mount: str, quota: tuple[int, int], cpus: int
) -> None:
    root = v1(tmp_path, "4:cpu,cpuacct:/kubepods/pod1", mount, {"kubepods/pod1": quota})
    assert usable_cpus(root) == cpus


def test_v1_is_walked_up_too(tmp_path: Path) -> None:
    root = v1(tmp_path, "4:cpu:/a/b", "cpu", {"a/b": (-1, 100_000), "a": (200_000, 100_000)})
    assert usable_cpus(root) == 2


def test_the_cpuset_hierarchy_is_not_the_cpu_hierarchy(tmp_path: Path) -> None:
    root = v1(tmp_path, "4:cpuset:/a", "cpu", {"a": (100_000, 100_000)})
    assert usable_cpus(root) == 8


def test_on_this_machine_there_is_at_least_one() -> None:
    assert 1 <= usable_cpus() <= 8
