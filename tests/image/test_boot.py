"""The image, baked by packer/scripts into a local Ubuntu 24.04 and booted with systemd: `make test-image`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.dist import version
from scripts.image import bake
from tests.image.conftest import Baked, layer, unlayer
from tests.packaging.machine import Machine
from tests.support.observe import wait_until
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

IMAGES = ("relay", "haproxy")
PATIENCE = 60.0
SETTINGS_UNITS = ("relay-settings.timer", "relay-settings.service")
METADATA = "169.254.169.254"


def checks(machine: str, image: str, *more: str) -> str:
    """Run tests/image/checks on a machine, as Packer's provisioner does; what pytest says. Fails if one fails."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-m", "image", "tests/image/checks", "-p", "no:cacheprovider", "-q",
            "--machine", machine, "--image", image, *more,
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_every_check_passes_on_the_booted_image(baked: Baked, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Machine(baked(image), {}, settled=False) as machine:
        said = checks(f"nsenter://{machine.leader}", image)
    with capsys.disabled():
        sys.stdout.write(f"\n{image}: {said.strip().splitlines()[-1]}\n")
    assert "failed" not in said


# --- before the first boot --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_nothing_of_the_machine_that_baked_it(baked: Baked, image: str) -> None:
    root = baked(image)
    assert (root / "etc/machine-id").read_bytes() == b""
    assert list((root / "etc/ssh").glob("ssh_host_*")) == []
    for empty in (
        "tmp",
        "var/tmp",
        "var/lib/apt/lists",
        "var/cache/apt/archives/partial",
        "var/log/journal",
        "var/lib/cloud",
    ):
        assert not (root / empty).exists() or list((root / empty).iterdir()) == [], empty
    assert list((root / "var/cache/apt/archives").glob("*.deb")) == []
    logs = [
        path
        for path in (root / "var/log").rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_size
    ]
    assert logs == []
    for gone in (
        "root/.ssh",
        "root/.bash_history",
        "root/.cache",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
    ):
        assert not (root / gone).exists(), gone
    people = [
        line for line in (root / "etc/passwd").read_text().splitlines() if 1000 <= int(line.split(":")[2]) < 65534
    ]
    assert people == []


def test_relay_s_image_has_no_settings(baked: Baked) -> None:
    assert not (baked("relay") / "etc/relay/relay.toml").exists()


def test_haproxy_s_image_waits_for_its_hub(baked: Baked) -> None:
    with Machine(baked("haproxy"), {}) as machine:
        assert machine.show("ConditionResult", "haproxy.service") == "no"
        assert machine.show("ActiveState", "haproxy.service") == "inactive"


# --- user data --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def metadata_service(machine: Machine) -> Iterator[Callable[[str], None]]:
    """A stand-in for Azure's metadata service at its own address in a machine's network; gives what sets user data."""
    inside = ["nsenter", "-t", str(machine.leader), "-n"]
    subprocess.run([*inside, "ip", "address", "add", f"{METADATA}/32", "dev", "lo"], check=True)
    server = subprocess.Popen(
        [*inside, sys.executable, "-m", "tests.support.metadata_server", "8999"],
        cwd=ROOT, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline()

    def forward(client: socket.socket) -> None:
        """One exchange: the stand-in listens on 127.0.0.1 alone."""
        with client, machine.connect(("127.0.0.1", 8999), PATIENCE) as behind:
            client.settimeout(PATIENCE)
            while not (asked := client.recv(65536)).endswith(b"\r\n\r\n"):
                behind.sendall(asked)
                assert asked
            behind.sendall(asked.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
            while answered := behind.recv(65536):
                client.sendall(answered)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=forward, args=[listener.accept()[0]], daemon=True).start()

    listener = machine.inside(lambda: socket.create_server((METADATA, 80)))
    threading.Thread(target=serve, daemon=True).start()

    def publish(text: str) -> None:
        connection = http.client.HTTPConnection("azure")
        connection.sock = machine.connect(("127.0.0.1", 8999))
        connection.request("PUT", "/control/user_data", text.encode())
        assert connection.getresponse().status == 204
        connection.close()

    try:
        yield publish
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.kill()
        server.wait()
        server.stdout.close()


def answer(machine: Machine, port: int, path: str) -> str:
    """What a port of the machine's loopback answers; nothing if nobody does."""
    connection = http.client.HTTPConnection("relay")
    try:
        connection.sock = machine.connect(("127.0.0.1", port))
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


@pytest.mark.skipif(
    not (ROOT / "deploy/systemd/relay-settings.service").exists(), reason="no settings from user data in this tree"
)
def test_relay_comes_up_from_user_data_and_follows_it(baked: Baked) -> None:
    """A first boot with nothing but user data; then what is published for a running machine."""
    text = "[health_check]\ninterval = 0.0\n[limits]\nmax_connections = {}\n"
    listener = '[[listeners]]\nname = "mqtt"\nbind = ["0.0.0.0:8883"]\nupstream = ["{}:{}"]\n'

    def limit(number: int) -> bool:
        return f"relay_connections_limit {number}.0" in answer(machine, 8414, "/metrics")

    with (
        Machine(baked("relay"), {}, settled=False) as machine,
        machine.inside(Echo) as hub,
        metadata_service(machine) as publish,
    ):
        wait_until(lambda: "Unhealthy" in answer(machine, 8080, "/healthz"), PATIENCE, machine.journal)
        publish(text.format(111) + listener.format(*hub.address))
        wait_until(lambda: limit(111), PATIENCE, lambda: machine.journal("-n", "100"))
        wait_until(lambda: machine.systemctl("is-system-running", check=False).strip() == "running", PATIENCE)
        pid = machine.show("MainPID")
        with machine.connect(("127.0.0.1", 8883), PATIENCE) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            publish(text.format(222) + listener.format(*hub.address))
            wait_until(lambda: limit(222), 2 * PATIENCE, lambda: machine.journal("-n", "100"))  # once a minute
            client.sendall(b"y")
            assert client.recv(1) == b"y"
        publish("upstreams = 1\n")
        down = "relay_settings_source_up 0.0"
        wait_until(
            lambda: down in answer(machine, 8414, "/metrics"), 2 * PATIENCE, lambda: machine.journal("-n", "100")
        )
        assert limit(222)
        assert '"ApplicationHealthState": "Healthy"' in answer(machine, 8080, "/healthz")
        assert machine.show("MainPID") == pid


# --- the scripts ------------------------------------------------------------------------------------------------------


def etc(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and contents of every file below /etc, and where its links lead."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in sorted((root / "etc").rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = (0, str(path.readlink()).encode())
        elif path.is_file():
            found[str(path.relative_to(root))] = (path.stat().st_mode, path.read_bytes())
    return found


def test_the_scripts_can_run_twice(baked: Baked, files: Path, tmp_path: Path) -> None:
    """As a provisioner does that is started again."""
    root = layer(baked("relay"), tmp_path)
    try:
        before = etc(root)
        bake(root, files, {"IMAGE": "relay", "IMAGE_VERSION": version()})
        after = etc(root)
    finally:
        unlayer(root)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        "etc/ld.so.cache", "etc/shadow-",
    }  # fmt: skip


# --- power-off --------------------------------------------------------------------------------------------------------


def test_a_power_off_is_a_drain(baked: Baked, tmp_path: Path) -> None:
    """As when Azure deletes a Spot machine: connections end one by one, and the journal on the disk has it."""
    journal = tmp_path / "journal"
    journal.mkdir()
    with (
        Machine(baked("relay"), {}, kept={"/var/log/journal": journal}, settled=False) as machine,
        machine.inside(Echo) as hub,
    ):
        machine.systemctl("stop", *SETTINGS_UNITS, check=False)
        host, port = hub.address
        machine.write(
            "/etc/relay/relay.toml",
            "[health_check]\ninterval = 0.0\n[drain]\nannounce = 1.0\nwindow = 6.0\n"
            f'[[listeners]]\nname = "mqtt"\nbind = ["0.0.0.0:8883"]\nupstream = ["{host}:{port}"]\n',
        )
        wait_until(lambda: machine.show("SubState") == "running", PATIENCE, machine.journal)
        clients = [machine.connect(("127.0.0.1", 8883), PATIENCE) for _ in range(6)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        machine.systemctl("--no-block", "poweroff")
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        machine.wait_off(PATIENCE)
    said = subprocess.run(
        ["journalctl", f"--directory={journal}", "--unit=relay.service", "--output=json"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    entries = [json.loads(line) for line in said.splitlines()]
    lines = [json.loads(entry["MESSAGE"]) for entry in entries if entry["MESSAGE"].startswith("{")]
    ended = [line for line in lines if line["event"] == "connection"]
    assert [line["outcome"] for line in ended] == ["drained"] * 6
    assert len({line["time"] for line in ended}) > 3  # one after another
    (last,) = [line for line in lines if line["event"] == "stopped"]
    assert last["outcomes"] == {"drained": 6}
    assert {entry["PRIORITY"] for entry in entries if '"event": "connection"' in entry["MESSAGE"]} == {"6"}
