"""The install bundle on a machine with systemd and no network: install, upgrade, roll back, and what may fail."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.packaging.bare import DEPRECATED, NEW_NAME, NEWER, OLD_NAME, SETTINGS, Bare, copy, need_sources, newer_tree
from tests.packaging.installed import PATIENCE
from tests.packaging.machine import Machine
from tests.packaging.pages import script
from tests.support.observe import wait_until
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]  # the first one builds the bundles

PYTHON = "{}.{}".format(*sys.version_info[:2])  # of the machine's Debian, too
HERE, NEXT = "/media/bundle", "/media/next"
DOWNLOADED = {"this": "/media/downloads/this", "newer": "/media/downloads/newer"}
INSTALL, UPGRADE = "install-as-a-service.md", "upgrade-and-roll-back.md"
INSTALLED = "/opt/relay/current/install.sh"


class Bundles(NamedTuple):
    """Unpacked bundles of this tree, and of one that only calls itself newer."""

    this: Path
    newer: Path
    version: str
    folder: Path  # what the first build has made
    newer_folder: Path


def build(tree: Path, output: Path) -> None:
    """As `make dist` does, for this machine alone."""
    line = [
        sys.executable,
        "-m",
        "scripts.dist",
        "--arch",
        platform.machine(),
        "--python",
        PYTHON,
        "--output",
        str(output),
    ]
    done = subprocess.run(line, cwd=tree, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("dist")
    need_sources("bundle", folder)
    build(ROOT, folder / "this")
    version = newer_tree(folder / "tree")
    build(folder / "tree", folder / "newer")
    unpacked: list[Path] = []
    for made in ("this", "newer"):
        (bundle,) = (folder / made).glob("relay-*-linux-*.tar.gz")
        with tarfile.open(bundle) as archive:
            archive.extractall(folder, filter="data")
        unpacked.append(folder / bundle.name.removesuffix(".tar.gz"))
    this, newer = unpacked
    return Bundles(this, newer, version, folder / "this", folder / "newer")


class BundleMachine(Bare):
    """A machine that the bundle is installed on."""

    prefix = "/opt/relay"

    def sh(self, *line: str, ok: bool = True) -> str:
        """Run a script with arguments; returns its output. Fails if its exit status is not as expected."""
        said = self.machine.run("sh", "-c", '"$@"; echo "[$?]"', "sh", "sh", *line)
        assert ("[0]" in said) is ok, said
        return said


@pytest.fixture(scope="module")
def booted(root: Path, bundles: Bundles) -> Iterator[Machine]:
    downloaded = {DOWNLOADED["this"]: bundles.folder, DOWNLOADED["newer"]: bundles.newer_folder}
    with Machine(root, {HERE: bundles.this, NEXT: bundles.newer, **downloaded}) as machine:
        yield machine


@pytest.fixture(scope="module")
def upstream(booted: Machine) -> Iterator[Echo]:
    with booted.inside(Echo) as server:
        yield server


@pytest.fixture
def bare(booted: Machine, upstream: Echo, bundles: Bundles) -> Iterator[BundleMachine]:
    yield BundleMachine(booted, upstream, bundles.version)
    booted.run("sh", "-c", f"[ ! -e {INSTALLED} ] || sh {INSTALLED} uninstall --purge")
    booted.run("sh", "-c", "rm -rf /opt/relay /etc/relay /etc/default/relay /tmp/bundle /usr/bin/relay")


def altered(bare: BundleMachine, script: str, bundle: str = HERE) -> str:
    """A copy of a bundle in which `script` has changed something, with its checksums made anew; its install.sh."""
    sums = "find . -type f ! -name SHA256SUMS | sed 's,^./,,' | sort | xargs sha256sum >SHA256SUMS"
    bare.machine.run("sh", "-c", f"cp -r {bundle} /tmp/bundle && cd /tmp/bundle && {script} && {sums}")
    return "/tmp/bundle/install.sh"


# --- as it should go --------------------------------------------------------------------------------------------------


def test_a_first_installation_says_what_to_edit_and_starts_nothing(bare: BundleMachine) -> None:
    said = bare.sh(f"{HERE}/install.sh")
    assert f"relay {bare.version} is installed and not started. Edit {SETTINGS}" in said
    assert "relay: upstream: not set" in said
    assert bare.machine.run("relay", "--version").strip() == f"relay {bare.version}"
    assert bare.machine.systemctl("is-enabled", "relay").strip() == "enabled"
    assert bare.machine.show("ActiveState") == "inactive"
    assert bare.machine.run("stat", "-c", "%a %U", SETTINGS).strip() == "644 root"
    bare.configure()
    bare.machine.systemctl("start", "relay")
    assert bare.echoes()


def test_with_settings_it_runs_at_once_and_is_replaced_rolled_back_and_removed(bare: BundleMachine) -> None:
    bare.configure()
    assert f"relay {bare.version} runs" in bare.sh(f"{HERE}/install.sh")
    assert bare.echoes()
    before = bare.machine.run("cat", SETTINGS)
    assert f"relay {NEWER} runs" in bare.sh(f"{NEXT}/install.sh")
    assert (bare.running(), bare.echoes()) == (NEWER, True)
    assert bare.sh(INSTALLED, "list").splitlines()[:2] == [f"{bare.version} (previous)", f"{NEWER} (current)"]
    assert f"relay {bare.version} is current" in bare.sh(INSTALLED, "rollback")
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert bare.machine.run("cat", SETTINGS) == before
    # The same version over itself: what ran before goes on until the new one takes over.
    assert f"relay {bare.version} runs" in bare.sh(f"{HERE}/install.sh")
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert "its settings are still in /etc/relay" in bare.sh(INSTALLED, "uninstall")
    assert bare.running() == ""
    places = "/opt/relay /usr/bin/relay /usr/local/lib/systemd/system/relay*"
    left = bare.machine.run("sh", "-c", f"ls -d {places} 2>&1 || :")
    assert left.count("No such file") == 3, left
    assert bare.machine.run("cat", SETTINGS) == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the how-to's commands are for x86-64")
def test_its_life_as_the_pages_have_it(bare: BundleMachine) -> None:
    def follow(commands: str, download: str = "this") -> str:
        folder = f"/tmp/bundle/{download}"
        bare.machine.run("sh", "-c", f"mkdir -p {folder} && cp {DOWNLOADED[download]}/* {folder}")
        return bare.machine.run("sh", "-ec", f"cd {folder}\n{commands}")

    assert ": OK" in follow(script(INSTALL, "Verify the download"))
    unpack, install, *then = script(INSTALL, "The install bundle").splitlines()
    assert "is installed and not started" in follow(f"{unpack}\n{install}")
    bare.configure()
    follow("\n".join(then))
    assert "active (running)" in follow(script(INSTALL, "Look at it"))
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert f"relay {NEWER} runs" in follow(script(UPGRADE, "Install bundle: upgrade"), "newer")
    assert (bare.running(), bare.echoes()) == (NEWER, True)
    assert f"relay {bare.version}\n" in follow(script(UPGRADE, "Install bundle: roll back"))
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert "its settings are still in /etc/relay" in follow(script(UPGRADE, "Install bundle: remove"))
    assert bare.running() == ""


def test_a_worker_that_dies_after_an_upgrade_gets_a_successor_of_its_own_version(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    bare.sh(f"{NEXT}/install.sh", "--no-start")
    pid = bare.machine.show("MainPID")
    (worker, *_) = bare.machine.run("pgrep", "-P", pid, "-f", "relay.worker").split()
    bare.machine.run("kill", "-9", worker)

    def successors() -> list[str]:
        return bare.machine.run("pgrep", "-P", pid, "-a", "-f", "relay.worker", check=False).splitlines()

    wait_until(lambda: len(successors()) == 2 and not any(line.startswith(worker) for line in successors()), PATIENCE)
    assert all(f"/opt/relay/{bare.version}/bin/python" in line for line in successors())


def test_what_a_machine_with_many_connections_needs(bare: BundleMachine) -> None:
    bare.sh(f"{HERE}/install.sh", "--no-start", "--tune")
    assert bare.machine.run("sysctl", "-n", "net.ipv4.ip_local_port_range").split() == ["1024", "65535"]
    merged = bare.machine.run("systemd-analyze", "cat-config", "systemd/journald.conf")
    assert "SystemMaxUse=2G" in merged


# --- what may fail ----------------------------------------------------------------------------------------------------


def test_an_upgrade_whose_check_fails_leaves_what_runs_alone(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    bare.configure("[tcp]\nkeepalive_idle = -1\n")
    said = bare.sh(f"{NEXT}/install.sh", ok=False)
    assert "relay: tcp.keepalive_idle" in said
    assert f"relay {NEWER} is installed beside {bare.version}, which goes on" in said
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert bare.machine.run("relay", "--version").strip() == f"relay {bare.version}"


def test_a_setting_that_was_renamed_survives_the_upgrade_and_the_way_back(bare: BundleMachine) -> None:
    bare.configure("[timeouts]\nmax_age_jitter = 0.2\n")
    assert "deprecated" not in bare.sh(f"{HERE}/install.sh")
    warning = f"{OLD_NAME} ({SETTINGS}, line {bare.line_of('max_age_jitter')}): {DEPRECATED}"
    said = bare.sh(f"{NEXT}/install.sh")
    assert f"relay: warning: {warning}" in said
    assert f"relay {NEWER} runs" in said
    assert (bare.running(), bare.echoes()) == (NEWER, True)
    assert warning in bare.machine.journal()
    assert f"relay {bare.version} is current" in bare.sh(INSTALLED, "rollback")
    assert (bare.running(), bare.echoes()) == (bare.version, True)


def test_a_rollback_with_a_setting_that_the_older_version_does_not_know(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    bare.sh(f"{NEXT}/install.sh")
    bare.configure("[timeouts]\nmax_age_spread = 0.2\n")
    bare.machine.systemctl("reload", "relay")
    pid = bare.machine.show("MainPID")
    said = bare.sh(INSTALLED, "rollback", ok=False)
    assert f"relay: {NEW_NAME}: unknown setting" in said
    assert f"relay {bare.version} would not start with {SETTINGS}; {NEWER} stays. Mend the lines above" in said
    assert (bare.running(), bare.echoes(), bare.machine.show("MainPID")) == (NEWER, True, pid)
    assert bare.machine.run("relay", "--version").strip() == f"relay {NEWER}"
    bare.configure("[timeouts]\nmax_age_jitter = 0.2\n")
    assert f"relay {bare.version} is current" in bare.sh(INSTALLED, "rollback")
    assert (bare.running(), bare.echoes()) == (bare.version, True)


def test_a_version_that_does_not_start_gives_way_to_the_one_before(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    install = altered(bare, "sed -i 's,^ExecStart=.*,ExecStart=/bin/false,' systemd/relay.service", NEXT)
    said = bare.sh(install, ok=False)
    assert f"relay {NEWER} did not start (journalctl -u relay); {bare.version} runs again" in said
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    # The same on the way back.
    bare.sh(f"{NEXT}/install.sh")
    unit = f"/opt/relay/{bare.version}/systemd/relay.service"
    bare.machine.run("sed", "-i", "s,^ExecStart=.*,ExecStart=/bin/false,", unit)
    said = bare.sh(INSTALLED, "rollback", ok=False)
    assert f"relay {bare.version} did not start (journalctl -u relay); {NEWER} runs again" in said
    assert (bare.running(), bare.echoes()) == (NEWER, True)


def test_settings_that_the_service_can_no_longer_read_at_an_upgrade(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    bare.machine.run("chmod", "700", "/etc/relay")
    said = bare.sh(f"{NEXT}/install.sh", ok=False)
    assert f"relay: {SETTINGS}: permission denied for the service's user" in said
    assert f"relay {NEWER} is installed beside {bare.version}, which goes on" in said
    assert (bare.running(), bare.echoes()) == (bare.version, True)


def test_settings_that_the_service_cannot_read(bare: BundleMachine) -> None:
    bare.configure()
    bare.machine.run("chmod", "600", SETTINGS)
    said = bare.sh(f"{HERE}/install.sh")
    assert f"relay: {SETTINGS}: permission denied for the service's user; chmod 644 {SETTINGS}" in said
    assert "is installed and not started" in said


def test_variables_of_the_environment_file_count(bare: BundleMachine) -> None:
    bare.machine.write("/etc/default/relay", 'RELAY_UPSTREAM="192.0.2.1"\n')
    said = bare.sh(f"{HERE}/install.sh")
    assert f"relay {bare.version} runs" in said


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sed -i s/^ARCH=.*/ARCH=sparc64/ release", "this bundle is for sparc64, and this machine is"),
        ("sed -i \"s/^PYTHONS=.*/PYTHONS='3.99'/\" release", "no CPython of 3.99 on this machine"),
        ("rm wheels/uvloop-*.whl", "nothing that was there before has changed"),
    ],
    ids=["architecture", "python", "wheel"],
)
def test_a_bundle_that_does_not_fit(bare: BundleMachine, script: str, words: str) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    said = bare.sh(altered(bare, script), ok=False)
    assert words in said
    assert (bare.running(), bare.echoes()) == (bare.version, True)


def test_a_damaged_bundle(bare: BundleMachine) -> None:
    install = altered(bare, "true")
    bare.machine.run("sh", "-c", "echo more >>/tmp/bundle/relay.toml")
    assert "the bundle is damaged" in bare.sh(install, ok=False)
    assert "No such file" in bare.machine.run("ls", "/usr/bin/relay", check=False)


def test_an_interpreter_that_will_not_do(bare: BundleMachine) -> None:
    bare.machine.write("/tmp/bundle/python", "#!/bin/sh\necho 'is Python 3.8' >&2\nexit 1\n", mode=0o755)
    said = bare.sh(f"{HERE}/install.sh", "--python", "/tmp/bundle/python", ok=False)
    assert "--python /tmp/bundle/python will not do" in said


def test_a_disk_without_room(bare: BundleMachine) -> None:
    bare.machine.run("mkdir", "-p", "/opt/relay")
    bare.machine.run("mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", "/opt/relay")
    try:
        assert "an installation takes 70 MB, and 140" in bare.sh(f"{HERE}/install.sh", ok=False)
        # Full half-way: what looks large enough is used up by somebody else.
        install = altered(bare, 'sed -i \'s/"$free" -ge 143360/"$free" -ge 1/\' install.sh')
        bare.machine.run("sh", "-c", "dd if=/dev/zero of=/opt/relay/other bs=1M count=60 2>/dev/null")
        assert "nothing that was there before has changed" in bare.sh(install, ok=False)
        assert bare.machine.run("ls", "-A", "/opt/relay").split() == [".lock", "install.log", "other"]
    finally:
        bare.machine.run("umount", "/opt/relay")


def test_one_that_is_interrupted_and_repeated(bare: BundleMachine) -> None:
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    for number in ("-TERM", "-KILL"):
        bare.machine.run("sh", "-c", f"sh {NEXT}/install.sh >/tmp/said 2>&1 & echo $! >/tmp/pid")
        wait_until(lambda: "cfg" in bare.machine.run("ls", "-A", "/opt/relay/.incoming/", check=False), PATIENCE)
        bare.machine.run("sh", "-c", f"kill {number} $(cat /tmp/pid); pkill {number} -f '[p]ip-'; :")
        wait_until(lambda: not bare.machine.run("pgrep", "-f", "media/next", check=False), PATIENCE)
        assert (bare.running(), bare.echoes()) == (bare.version, True)
    assert f"relay {NEWER} runs" in bare.sh(f"{NEXT}/install.sh")
    assert ".incoming" not in bare.machine.run("ls", "-A", "/opt/relay")


def test_one_that_is_killed_while_it_replaces_the_version_that_runs(bare: BundleMachine) -> None:
    """As such a kill leaves it: the folder of the running version is aside, and the new one not in its place yet."""
    bare.configure()
    bare.sh(f"{HERE}/install.sh")
    place = f"/opt/relay/{bare.version}"
    bare.machine.run("sh", "-c", f"mv {place} /opt/relay/.replaced-{bare.version}")
    # Whatever is installed next puts it back, even if that fails.
    assert "nothing that was there before" in bare.sh(altered(bare, "rm wheels/uvloop-*.whl", NEXT), ok=False)
    assert bare.machine.run("relay", "--version").strip() == f"relay {bare.version}"
    bare.machine.systemctl("restart", "relay")
    assert (bare.running(), bare.echoes()) == (bare.version, True)
    left = bare.machine.run("ls", "-A", "/opt/relay").split()
    assert not [name for name in left if name.startswith((".incoming", ".replaced"))], left


def test_somebody_elses_command_is_not_replaced(bare: BundleMachine) -> None:
    bare.machine.write("/usr/bin/relay", "#!/bin/sh\n", mode=0o755)
    assert "/usr/bin/relay is there and not from this installer" in bare.sh(f"{HERE}/install.sh", ok=False)


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_same_commit_gives_the_same_bytes(bundles: Bundles, tmp_path: Path) -> None:
    tree = copy(tmp_path / "elsewhere")
    shutil.copytree(ROOT / ".git", tree / ".git", symlinks=True)
    time.sleep(1.1)  # a time of building that got into a file would differ
    build(tree, tmp_path / "again")
    sums = (bundles.folder / "SHA256SUMS").read_text()
    assert (tmp_path / "again/SHA256SUMS").read_text() == sums
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=bundles.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
