"""The stand-in hub and the devices as separate programs, as the services of compose.yaml run them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.demo import telemetry
from relay.demo.devices import trust
from tests.support.programs import START, launched

FREE = ("--mqtt", "0", "--https", "0", "--amqp", "0")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts one of the two; its standard output is a pipe, its standard input ends at once, as a container's."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "relay.demo.compose", *map(str, arguments)]
        process = subprocess.Popen(launched(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def ended(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=START)  # reads on: nobody blocks on a full pipe
    return process.returncode


def test_devices_wait_for_the_hub(start: Start, tmp_path: Path) -> None:
    """As after `docker compose up`, in no order: there is no authority yet."""
    early = start("devices", tmp_path, "--through", "127.0.0.1")
    assert "No such file" in next_line(early)["waiting"]
    assert ended(early) == 0


def test_messages_of_the_devices_arrive(start: Start, tmp_path: Path) -> None:
    hub = start("hub", tmp_path, "--host", "127.0.0.1", *FREE)
    ports = next_line(hub)
    assert (tmp_path / "server.pem").stat().st_mode & 0o077 == 0, "the key is the hub's alone"
    with (
        socket.create_connection(("127.0.0.1", ports["amqp"]), START) as plain,
        trust(str(tmp_path / "authority.pem")).wrap_socket(plain, server_hostname=telemetry.HUB_NAME) as amqp,
    ):
        assert amqp.recv(1) == b"", "there is TLS on that port, and no AMQP"

    line = ["--through", "127.0.0.1", "--mqtt", ports["mqtt"], "--https", ports["https"], "--interval", "0.05"]
    devices = start("devices", tmp_path, *line)
    arrived: set[str] = set()
    while len(arrived) < 3:
        arrived.add(telemetry.Arrival(**next_line(hub)).device)
    assert arrived == {"mqtt-1", "mqtt-2", "https-3"}
    acknowledged: set[str] = set()
    while len(acknowledged) < 3:
        line_of_state = next_line(devices)
        if line_of_state["acknowledged"]:
            acknowledged.add(line_of_state["device"])
    assert ended(devices) == 0
    assert ended(hub) == 0


def test_devices_that_run_on_trust_a_hub_that_is_started_again(start: Start, tmp_path: Path) -> None:
    hub = start("hub", tmp_path, "--host", "127.0.0.1", *FREE)
    ports = next_line(hub)
    authority = (tmp_path / "authority.pem").read_bytes()
    assert ended(hub) == 0
    again = start("hub", tmp_path, "--host", "127.0.0.1", *FREE)
    assert next_line(again).keys() == ports.keys()
    assert (tmp_path / "authority.pem").read_bytes() == authority
    assert {file.name for file in tmp_path.iterdir()} == {"authority.pem", "server.pem"}


def test_a_hub_that_cannot_have_its_port_says_so(start: Start, tmp_path: Path) -> None:
    hub = start("hub", tmp_path, "--host", "127.0.0.1", *FREE)
    ports = next_line(hub)
    line = [sys.executable, "-m", "relay.demo.compose", "hub", str(tmp_path), "--host", "127.0.0.1"]
    line += [*FREE, "--https", str(ports["https"])]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START)
    assert done.returncode == 1
    assert "address already in use" in done.stderr
