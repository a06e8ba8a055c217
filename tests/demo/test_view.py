"""The live view fits a small terminal, whatever goes on, and says it in one line where there is no terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from relay.demo import telemetry, view
from relay.demo.certificates import Certificates
from relay.demo.devices import CONNECTED, RETRYING, Device, HttpsDevice, Target, trust
from relay.demo.rig import HTTPS_DEVICES, MQTT_DEVICES

ADMIN = "http://127.0.0.1:65535"


def status(**listener: Any) -> Any:
    """As the admin port gives it, with numbers that take room."""
    item = {
        "bind": ["127.0.0.1:65535"],
        "upstream": ["127.0.0.1:65534"],
        "active": 6,
        "accepted": 12345,
        "outcomes": {"ok": 12000, "client_reset": 300, "worker_died": 39},
        "bytes_up": 999_900_000,
        "bytes_down": 888_800_000,
    } | listener
    return {
        "state": "ready",
        "reason": "",
        "engine": "stream",
        "listeners": [{"name": "mqtt", **item}, {"name": "https", **item}],
        "workers": [{"pid": 4194303, "ready": True, "active": 6}, {"pid": None, "ready": False, "active": 0}],
    }


@pytest.fixture
def devices(made_certificates: Certificates) -> list[Device]:
    target = Target(telemetry.HUB_NAME, "127.0.0.1", 1, trust(str(made_certificates.authority)))
    made: list[Device] = [HttpsDevice(f"https-{n}", target) for n in range(MQTT_DEVICES + HTTPS_DEVICES)]
    for device in made:
        device.state = CONNECTED
        device.account.sent = device.account.acknowledged = 123456
        device.account.round_trips.append(0.0015)
    made[0].state, made[0].error = RETRYING, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: " + "x" * 100
    return made


def picture(devices: list[Device], now: Any) -> view.Picture:
    return view.Picture(
        seconds=3725.0,
        devices=devices,
        received={"mqtt": 70, "https": 30},
        hub_pid=4194302,
        admin=ADMIN,
        log=Path("/tmp/relay-demo-abcdefgh/relay.log"),
        config=Path("/tmp/relay-demo-abcdefgh/relay.toml"),
        status=now,
    )


def drawn(shown: view.Picture) -> list[str]:
    console = Console(width=80, height=24, color_system=None)
    with console.capture() as capture:
        console.print(view.terminal(shown))
    return capture.get().splitlines()


def test_the_picture_fits_80_columns_and_24_lines(devices: list[Device]) -> None:
    lines = drawn(picture(devices, status()))
    assert len(lines) < 24  # the cursor stands on one more
    assert max(map(len, lines)) <= 80


def test_the_picture_shows_devices_relay_hub_and_where_to_look(devices: list[Device]) -> None:
    text = "\n".join(drawn(picture(devices, status(outcomes={"ok": 7}))))
    for part in (
        "1h 2m",
        "Ctrl-C stops",
        "retrying [SSL: CERT",  # shown as it is, not taken for markup
        "123456",
        "1.5",
        "mqtt :65535 -> :65534",
        "999.9 MB",
        "ok 7",
        "pid 4194303 6 active, pid - 0 active, starting",
        "received 100: 70 mqtt, 30 https",
        f"{ADMIN}/status",
        f"{ADMIN}/metrics",
        f"relay status --admin {ADMIN}",
        "/tmp/relay-demo-abcdefgh/relay.log",
    ):
        assert part in text, part


def test_a_relay_that_does_not_answer_is_said(devices: list[Device]) -> None:
    assert any("admin port does not answer" in line for line in drawn(picture(devices, None)))
    assert "does not answer at its admin port" in view.line(picture(devices, None))


def test_without_a_terminal_it_is_one_line(devices: list[Device]) -> None:
    line = view.line(picture(devices, status()))
    assert line.startswith("1h 2m: 8 of 9 devices connected, sent 1111104, acknowledged 1111104, hub received 100;")
    assert "mqtt 6 active 999.9 MB up 888.8 MB down" in line
    assert "\n" not in line
