"""The image, baked by packer/scripts into a local Ubuntu 24.04 and booted with systemd: `make test-image`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.dist import version
from scripts.image import bake
from tests.image.checks.proxies import SETTINGS
from tests.image.conftest import Baked, layer, unlayer
from tests.packaging.machine import Machine
from tests.support.observe import wait_until
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

IMAGES = ("relay", "haproxy")
PATIENCE = 60.0


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
    with Machine(baked(image), {}) as machine:
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


def test_relay_s_image_has_no_settings_and_waits_for_some(baked: Baked) -> None:
    root = baked("relay")
    assert not (root / "etc/relay/relay.toml").exists()
    with Machine(root, {}) as machine:
        wait_until(lambda: int(machine.show("NRestarts")) > 1, PATIENCE)
        machine.write("/etc/relay/relay.toml", SETTINGS.format(hub="192.0.2.1"))
        wait_until(lambda: machine.show("SubState") == "running", PATIENCE, machine.journal)


def test_haproxy_s_image_waits_for_its_hub(baked: Baked) -> None:
    with Machine(baked("haproxy"), {}) as machine:
        assert machine.show("ConditionResult", "haproxy.service") == "no"
        assert machine.show("ActiveState", "haproxy.service") == "inactive"


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
    with Machine(baked("relay"), {}, kept={"/var/log/journal": journal}) as machine, machine.inside(Echo) as hub:
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
