"""The Debian package on machines of Debian and Ubuntu, without a network: what docs/how-to has, and what may fail."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.dist import PYTHONS
from tests.packaging.bare import DEPRECATED, NEW_NAME, NEWER, OLD_NAME, SETTINGS, Bare, copy, need_sources, newer_tree
from tests.packaging.installed import PATIENCE
from tests.packaging.machine import Machine
from tests.packaging.pages import script
from tests.support.observe import wait_until
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

pytestmark = [pytest.mark.packages, pytest.mark.timeout(900)]  # the first one builds the packages

RELEASES = {"bookworm": "3.11", "trixie": "3.13", "noble": "3.12"}  # and their Python
HERE, NEXT = "/media/this", "/media/newer"
INSTALL, UPGRADE = "install-as-a-service.md", "upgrade-and-roll-back.md"
KEEP = ["--option", "Dpkg::Options::=--force-confold"]


class Packages(NamedTuple):
    """Folders with a package of this tree, and of one that only calls itself newer."""

    this: Path
    newer: Path
    version: str
    wheels: Path


def build(tree: Path, output: Path, wheels: Path) -> Path:
    """As `make deb` does, for this machine alone, and without the half minute that compression takes; the package."""
    line = [sys.executable, "-m", "scripts.deb", "--arch", platform.machine(), "--compress", "none"]
    line += ["--output", str(output), "--wheels", str(wheels)]
    done = subprocess.run(line, cwd=tree, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = output.glob("relay_*.deb")
    return made


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb: not a Debian or Ubuntu")
    if platform.machine() != "x86_64":
        pytest.skip("the how-to's commands are for x86-64")
    folder = tmp_path_factory.mktemp("deb")
    need_sources("package", folder)
    (folder / "wheels").mkdir()
    build(ROOT, folder / "this", folder / "wheels")
    version = newer_tree(folder / "tree")
    build(folder / "tree", folder / "newer", folder / "wheels")
    return Packages(folder / "this", folder / "newer", version, folder / "wheels")


class DebianMachine(Bare):
    """A machine that the package is installed on."""

    prefix = "/usr/lib/relay"

    def sh(self, text: str, folder: str = HERE, *, ok: bool = True) -> str:
        """Commands in a folder, up to the first that fails; what they say. Fails if that is not as expected."""
        said = self.machine.run("sh", "-c", f"cd {folder}\n(set -e\n{text}\n)\necho [$?]")
        assert (said.splitlines()[-1] == "[0]") is ok, said
        return said

    def apt(self, *arguments: str, ok: bool = True) -> str:
        """apt-get of somebody who is not there to answer."""
        return self.sh(f"DEBIAN_FRONTEND=noninteractive apt-get --yes {' '.join(arguments)}", ok=ok)

    def serves(self, version: str) -> None:
        """That version runs, and bytes pass."""
        assert (self.running(), self.echoes()) == (version, True)

    def workers(self) -> list[str]:
        """Number and command of each."""
        pid = self.machine.show("MainPID")
        return self.machine.run("pgrep", "-P", pid, "-a", "-f", "relay.worker", check=False).splitlines()


def booted_as(release: str, packages: Packages) -> Iterator[DebianMachine]:
    line = [sys.executable, str(ROOT / "scripts/systemd_root.py"), "--release", release]
    made = subprocess.run(line, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no root for a virtual systemd machine: {made.stderr.strip().splitlines()[-1]}")
    shared = {HERE: packages.this, NEXT: packages.newer}
    with Machine(Path(made.stdout.strip()), shared) as machine, machine.inside(Echo) as echo:
        yield DebianMachine(machine, echo, packages.version)


@pytest.fixture(params=RELEASES)
def fresh(request: pytest.FixtureRequest, root: Path, packages: Packages) -> Iterator[DebianMachine]:
    """A machine of each release; `root` skips where there can be none."""
    yield from booted_as(request.param, packages)


@pytest.fixture(scope="module")
def debian(root: Path, packages: Packages) -> Iterator[DebianMachine]:
    yield from booted_as("bookworm", packages)


@pytest.fixture
def bare(debian: DebianMachine) -> Iterator[DebianMachine]:
    """A machine of Debian 12, shared by the tests, without relay."""
    yield debian
    debian.sh("dpkg --purge --force-remove-reinstreq relay")  # also where a test has done so, or was interrupted
    debian.sh("rm -rf /etc/relay /etc/default/relay /opt/relay")


# --- as the pages have it ---------------------------------------------------------------------------------------------


def test_its_life_as_the_pages_have_it(fresh: DebianMachine) -> None:
    """Verified, installed, started, upgraded, rolled back, removed, purged: on each release."""
    machine = fresh.machine
    assert ": OK" in fresh.sh(script(INSTALL, "Verify the download"))
    install, *then = script(INSTALL, "The Debian package").splitlines()
    said = fresh.sh(install)
    assert f"relay: {fresh.version} is installed and not started. Edit {SETTINGS}" in said
    assert "relay: upstream: not set" in said
    assert "warning" not in said.lower().replace("warning: apt does not have a stable cli interface", ""), said
    assert machine.run("relay", "--version").strip() == f"relay {fresh.version}"
    assert machine.systemctl("is-enabled", "relay").strip() == "enabled"
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("stat", "-c", "%a %U", SETTINGS).strip() == "644 root"
    fresh.configure()
    before = machine.run("cat", SETTINGS)
    fresh.sh("\n".join(then))
    fresh.serves(fresh.version)
    assert "active (running)" in fresh.sh(script(INSTALL, "Look at it"))
    assert all(f"/usr/lib/relay/{fresh.version}/bin/python3" in line for line in fresh.workers())

    said = fresh.sh(script(UPGRADE, "Debian package: upgrade"), NEXT)
    assert f"relay: {NEWER} runs" in said
    fresh.serves(NEWER)
    assert machine.run("ls", "-A", "/usr/lib/relay").split() == [NEWER]
    said = fresh.sh(script(UPGRADE, "Debian package: roll back"))
    assert f"relay: {fresh.version} runs" in said
    fresh.serves(fresh.version)
    assert machine.run("ls", "-A", "/usr/lib/relay").split() == [fresh.version]
    assert machine.run("cat", SETTINGS) == before

    fresh.sh(script(UPGRADE, "Debian package: remove"))
    assert fresh.running() == ""
    places = "/usr/lib/relay /usr/bin/relay /usr/lib/systemd/system/relay.service"
    assert machine.run("sh", "-c", f"ls -d {places} 2>&1 || :").count("No such file") == 3
    assert machine.run("cat", SETTINGS) == before
    # What the settings were is known again, and it is enabled as before.
    assert f"relay: {fresh.version} runs" in fresh.apt("install", "./relay_*_amd64.deb")
    fresh.serves(fresh.version)
    fresh.apt("purge", "relay")
    left = "/etc/relay /etc/systemd/system/multi-user.target.wants/relay.service"
    assert machine.run("sh", "-c", f"ls -d {left} 2>&1 || :").count("No such file") == 2
    assert "relay" not in machine.run("sh", "-c", "find / -xdev -path /media -prune -o -name 'relay*' -print | "
                                      "grep -v -e /proc/ -e /sys/ -e postfix || :")  # fmt: skip


def test_sockets_and_the_machines_settings_as_the_page_has_them(bare: DebianMachine) -> None:
    bare.configure()
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    bare.sh(script(INSTALL, "For many connections"))
    assert bare.machine.run("sysctl", "-n", "net.ipv4.ip_local_port_range").split() == ["1024", "65535"]
    merged = bare.machine.run("systemd-analyze", "cat-config", "systemd/journald.conf")
    assert "SystemMaxUse=2G" in merged
    # The units' addresses are those of `upstream` alone.
    bare.machine.write(
        "/etc/systemd/system/relay.socket.d/test.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:443\n"
    )
    bare.machine.systemctl("daemon-reload")
    bare.sh(script(INSTALL, "Restarts without a refused client"))
    bare.serves(bare.version)
    assert bare.machine.show("ActiveState", "relay.socket") == "active"
    bare.apt("remove", "relay")
    assert bare.machine.show("ActiveState", "relay.socket") == "inactive"
    bare.sh("rm -r /etc/systemd/system/relay.socket.d /etc/sysctl.d/60-relay.conf /etc/systemd/journald.conf.d")


# --- upgrades that meet something -------------------------------------------------------------------------------------


def test_settings_with_mistakes_at_an_upgrade_leave_what_runs_alone(bare: DebianMachine) -> None:
    bare.configure()
    assert f"relay: {bare.version} runs" in bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    pid = bare.machine.show("MainPID")
    bare.configure("[tcp]\nkeepalive_idle = -1\n")
    said = bare.sh(script(UPGRADE, "Debian package: upgrade"), NEXT)
    assert "relay: tcp.keepalive_idle" in said
    assert "the relay that runs goes on as it is" in said
    bare.serves(bare.version)
    assert bare.machine.show("MainPID") == pid
    # It goes on with its own files: also a worker that is started now.
    (worker, *_) = bare.workers()
    bare.machine.run("kill", "-9", worker.split()[0])
    wait_until(lambda: len(bare.workers()) == 2 and worker not in bare.workers(), PATIENCE)
    assert all(f"/usr/lib/relay/{bare.version}/bin/python3" in line for line in bare.workers())
    bare.configure()
    bare.machine.systemctl("restart", "relay")
    bare.serves(NEWER)
    # Once nothing runs from it, the next one removes it.
    bare.sh("apt-get --yes reinstall ./relay_*_amd64.deb", NEXT)
    assert bare.machine.run("ls", "-A", "/usr/lib/relay").split() == [NEWER]


def test_a_setting_that_was_renamed_and_the_way_back(bare: DebianMachine) -> None:
    bare.configure("[timeouts]\nmax_age_jitter = 0.2\n")
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    said = bare.sh(script(UPGRADE, "Debian package: upgrade"), NEXT)
    line = bare.line_of("max_age_jitter")
    assert f"relay: warning: {OLD_NAME} ({SETTINGS}, line {line}): {DEPRECATED}" in said
    bare.serves(NEWER)
    # A setting that the older one does not know: what runs goes on, also with a worker that is started now.
    bare.configure("[timeouts]\nmax_age_spread = 0.2\n")
    bare.machine.systemctl("reload", "relay")
    pid = bare.machine.show("MainPID")
    said = bare.sh(script(UPGRADE, "Debian package: roll back"))
    assert f"relay: {NEW_NAME}: unknown setting" in said
    assert "the relay that runs goes on as it is: mend the lines above, then: systemctl restart relay" in said
    bare.serves(NEWER)
    assert bare.machine.show("MainPID") == pid
    bare.configure("[timeouts]\nmax_age_jitter = 0.2\n")
    bare.machine.systemctl("restart", "relay")
    bare.serves(bare.version)


def test_what_was_stopped_or_disabled_stays_so(bare: DebianMachine) -> None:
    bare.configure()
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    bare.machine.systemctl("disable", "--now", "relay")
    bare.sh(script(UPGRADE, "Debian package: upgrade").splitlines()[0], NEXT)
    assert bare.machine.show("ActiveState") == "inactive"
    assert bare.machine.systemctl("is-enabled", "relay", check=False).strip() == "disabled"
    bare.apt("remove", "relay")
    assert "the service is disabled, and was not started" in bare.apt("install", "./relay_*_amd64.deb")


def test_policy_rc_d_is_heard(bare: DebianMachine) -> None:
    bare.configure()
    bare.machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode=0o755)
    try:
        assert "it was not started" in bare.apt("install", *KEEP, "./relay_*_amd64.deb")
        assert bare.machine.show("ActiveState") == "inactive"
    finally:
        bare.machine.run("rm", "/usr/sbin/policy-rc.d")


def test_settings_that_the_service_cannot_read(bare: DebianMachine) -> None:
    bare.configure()
    bare.machine.run("chmod", "600", SETTINGS)
    said = bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    assert f"relay: {SETTINGS}: permission denied for the service's user; chmod 644 {SETTINGS}" in said
    assert "is installed and not started" in said


def test_variables_of_the_environment_file_count(bare: DebianMachine) -> None:
    bare.machine.write("/etc/default/relay", "RELAY_UPSTREAM='192.0.2.1'\n")
    assert f"relay: {bare.version} runs" in bare.apt("install", "./relay_*_amd64.deb")


def test_it_is_not_installed_over_a_bundle(bare: DebianMachine) -> None:
    bare.sh("mkdir -p /opt/relay/1.0.0 && ln -s 1.0.0 /opt/relay/current")
    said = bare.apt("install", "./relay_*_amd64.deb", ok=False)
    assert "sh /opt/relay/current/install.sh uninstall" in said
    assert "No such file" in bare.machine.run("ls", "/usr/bin/relay", check=False)


def test_a_disk_that_is_full_half_way(bare: DebianMachine) -> None:
    bare.configure()
    bare.sh("mkdir -p /usr/lib/relay && mount -t tmpfs -o size=230m tmpfs /usr/lib/relay")
    try:
        bare.apt("install", *KEEP, "./relay_*_amd64.deb")
        pid = bare.machine.show("MainPID")
        said = bare.sh("apt-get --yes install ./relay_*_amd64.deb", NEXT, ok=False)
        assert "No space left on device" in said
        bare.serves(bare.version)
        assert bare.machine.show("MainPID") == pid
        assert bare.machine.run("ls", "-A", "/usr/lib/relay").split() == [bare.version]
        assert bare.machine.run("dpkg-query", "--show", "--showformat=${Status} ${Version}", "relay") == (
            f"install ok installed {bare.version}"
        )
    finally:
        bare.apt("purge", "relay")
        bare.machine.run("umount", "/usr/lib/relay")


def test_an_upgrade_that_is_interrupted_and_repeated(bare: DebianMachine) -> None:
    bare.configure()
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    pid = bare.machine.show("MainPID")
    inside = f"/usr/lib/relay/{NEWER}/site-packages/relay"
    bare.sh(
        "apt-get --yes install ./relay_*_amd64.deb >/tmp/said 2>&1 & "
        f"until [ -e {inside} ]; do [ -d /proc/$! ] || exit 1; done; pkill -KILL -x dpkg; wait $! && exit 1 || :",
        NEXT,
    )
    status = "dpkg-query --show --showformat='${db:Status-Status}\\n' relay"
    assert "half-installed" in bare.sh(status)
    bare.serves(bare.version)
    assert bare.machine.show("MainPID") == pid
    (worker, *_) = bare.workers()
    bare.machine.run("kill", "-9", worker.split()[0])
    wait_until(lambda: len(bare.workers()) == 2 and worker not in bare.workers(), PATIENCE)
    bare.serves(bare.version)
    # As apt itself asks for it.
    assert "dpkg --configure -a" in bare.apt("install", "./relay_*_amd64.deb", ok=False)
    bare.sh("dpkg --configure -a || :")
    assert f"relay: {NEWER} runs" in bare.sh("apt-get --yes install ./relay_*_amd64.deb", NEXT)
    bare.serves(NEWER)
    assert bare.machine.run("ls", "-A", "/usr/lib/relay").split() == [NEWER]


@pytest.mark.parametrize(
    ("field", "other", "words"),
    [
        ("Architecture", "sparc64", "sparc64"),
        ("Depends", "python3 (>= 3.99)", "Depends: python3 (>= 3.99)"),
    ],
    ids=["architecture", "python"],
)
def test_a_package_that_does_not_fit(bare: DebianMachine, field: str, other: str, words: str) -> None:
    bare.configure()
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    pid = bare.machine.show("MainPID")
    bare.sh(
        f"rm -rf /tmp/other && mkdir /tmp/other && dpkg-deb --raw-extract {NEXT}/relay_*_amd64.deb /tmp/other/tree\n"
        f"sed -i 's/^{field}: .*/{field}: {other}/' /tmp/other/tree/DEBIAN/control\n"
        "dpkg-deb -Znone --build /tmp/other/tree /tmp/other/relay.deb"
    )
    said = bare.apt("install", "/tmp/other/relay.deb", ok=False)
    assert words in said
    bare.serves(bare.version)
    assert bare.machine.show("MainPID") == pid
    bare.sh("rm -r /tmp/other")


# --- another Python ---------------------------------------------------------------------------------------------------


def test_one_that_runs_is_restarted_when_the_systems_python_is_another(bare: DebianMachine) -> None:
    """The trigger by itself: byte code for the Python that is there now is missing, as after an upgrade."""
    bare.configure()
    bare.apt("install", *KEEP, "./relay_*_amd64.deb")
    pid = bare.machine.show("MainPID")
    fire = "dpkg-trigger --by-package=python3-minimal /usr/bin/python3 && dpkg --triggers-only relay"
    bare.sh(fire)
    assert bare.machine.show("MainPID") == pid  # the same one as before: nothing to do
    home = f"/usr/lib/relay/{bare.version}/site-packages/relay/__pycache__"
    bare.sh(f"mv {home}/cli.cpython-311.pyc {home}/cli.cpython-310.pyc")
    assert f"relay: {bare.version} runs" in bare.sh(fire)
    assert bare.machine.show("MainPID") != pid
    bare.serves(bare.version)
    assert bare.machine.run("ls", home).count("cli.cpython") == 1


def test_debian_12_becomes_debian_13(root: Path, packages: Packages, tmp_path: Path) -> None:
    """With python3 of the next release, from the archive: 3.11 with all that is its own has gone."""
    place = tmp_path / "root"
    subprocess.run(["cp", "-a", str(root), str(place)], check=True)
    shutil.copy("/etc/resolv.conf", place / "etc/resolv.conf")
    for package in packages.this.glob("*.deb"):
        shutil.copy(package, place / "root")

    def inside(text: str) -> str:
        line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", str(place), "sh", "-ec"]
        mounts = "mount -t proc proc /proc; mount -t tmpfs tmpfs /run; export DEBIAN_FRONTEND=noninteractive; "
        done = subprocess.run([*line, mounts + text], capture_output=True, text=True, timeout=700)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    compiled = "find /usr/lib/relay -path '*/relay/__pycache__/cli.*.pyc'"
    found = inside(f"apt-get -qq install /root/relay_*.deb && {compiled}")
    assert f"cli.cpython-{RELEASES['bookworm'].replace('.', '')}.pyc" in found
    inside("sed -i s/bookworm/trixie/g /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || :")
    inside("apt-get -qq update && apt-get -qq --yes dist-upgrade && apt-get -qq --yes autoremove --purge")
    found = inside(f"python3 --version; ls /usr/bin/python3.11 2>&1 || :; relay --version; {compiled}")
    assert f"Python {RELEASES['trixie']}." in found
    assert "cannot access '/usr/bin/python3.11'" in found
    assert f"relay {packages.version}\n" in found
    assert found.count("cli.cpython-") == 1
    assert "cli.cpython-313.pyc" in found


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_same_commit_gives_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    tree = copy(tmp_path / "elsewhere")
    shutil.copytree(ROOT / ".git", tree / ".git", symlinks=True)
    time.sleep(1.1)  # a time of building that got into a file would differ
    again = build(tree, tmp_path / "again", packages.wheels)
    (first,) = packages.this.glob("*.deb")
    assert again.read_bytes() == first.read_bytes()
    assert (tmp_path / "again/SHA256SUMS").read_text() == (packages.this / "SHA256SUMS").read_text()


def test_lintian_has_nothing_to_say(packages: Packages) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("no lintian (make deps installs it)")
    (package,) = packages.this.glob("*.deb")
    quick = "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball"  # as built for these tests
    line = ["lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", quick, str(package)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_each_python_has_its_compiled_modules(packages: Packages) -> None:
    (package,) = packages.this.glob("*.deb")
    done = subprocess.run(["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True)
    modules = [line.split()[5].rpartition("/")[2] for line in done.stdout.splitlines() if ".cpython-" in line]
    names = {module.partition(".")[0] for module in modules}
    assert "loop" in names  # uvloop's
    for python in PYTHONS:
        tag = f".cpython-{python.replace('.', '')}-"
        assert {module.partition(".")[0] for module in modules if tag in module} == names
