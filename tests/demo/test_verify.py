"""`relay demo --once` passes only if everything arrived and the relay's numbers agree: each way to fail is found."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from relay.demo import telemetry
from relay.demo.certificates import Certificates
from relay.demo.devices import Device, HttpsDevice, Target, trust
from relay.demo.once import Journal, verify_arrivals, verify_relay
from relay.demo.telemetry import Arrival, Key


@pytest.fixture
def device(made_certificates: Certificates) -> Device:
    """A device that says it sent two messages over one connection."""
    made = HttpsDevice(
        "https-1", Target(telemetry.HUB_NAME, "127.0.0.1", 1, trust(str(made_certificates.authority))), keep=True
    )
    for sequence in (1, 2):
        payload = telemetry.encode(made.name, sequence, 20.0, 50.0)
        assert made.account.digests is not None
        made.account.digests[Key(made.name, sequence)] = telemetry.digest(payload)
        made.account.payload_bytes += len(payload)
    made.account.sent = made.account.acknowledged = 2
    made.account.connections = 1
    return made


@pytest.fixture
def journal(device: Device) -> Journal:
    """A hub's record that agrees with it."""
    journal = Journal()
    assert device.account.digests is not None
    for key, digest in device.account.digests.items():
        journal.add(Arrival(telemetry.HTTPS, key.device, key.sequence, digest))
    return journal


@pytest.fixture
def status(device: Device) -> Any:
    """A relay's status that agrees with it."""
    up = device.account.payload_bytes + 1000
    return {
        "listeners": [
            {"name": "mqtt", "active": 0, "accepted": 0, "outcomes": {}, "bytes_up": 0, "bytes_down": 0},
            {"name": "https", "active": 0, "accepted": 1, "outcomes": {"ok": 1}, "bytes_up": up, "bytes_down": 500},
        ]
    }


def test_agreement_is_no_problem(device: Device, journal: Journal, status: Any) -> None:
    assert verify_arrivals([device], journal.arrivals) == []
    assert verify_relay([device], status) == []


def test_a_missing_message_is_named(device: Device, journal: Journal) -> None:
    del journal.arrivals[Key("https-1", 2)]
    assert verify_arrivals([device], journal.arrivals) == ["1 messages did not arrive: https-1 #2"]


def test_many_missing_messages_are_counted_and_some_named(device: Device, journal: Journal) -> None:
    assert device.account.digests is not None
    for sequence in range(3, 23):
        device.account.digests[Key(device.name, sequence)] = "0"
    (problem,) = verify_arrivals([device], journal.arrivals)
    assert problem.startswith("20 messages did not arrive: https-1 #3, https-1 #4")
    assert problem.endswith("https-1 #12, and 10 more")


def test_an_altered_message_is_found(device: Device, journal: Journal) -> None:
    journal.add(Arrival(telemetry.HTTPS, "https-1", 1, "of other bytes"))
    device.account.connections = 2
    (problem,) = verify_arrivals([device], journal.arrivals)
    assert "other bytes than were sent: https-1 #1" in problem


def test_a_message_by_another_protocol_is_found(device: Device, journal: Journal) -> None:
    (arrival,) = journal.arrivals[Key("https-1", 1)]
    journal.arrivals[Key("https-1", 1)] = [Arrival(telemetry.MQTT, "https-1", 1, arrival.digest)]
    (problem,) = verify_arrivals([device], journal.arrivals)
    assert "another protocol" in problem


def test_a_message_that_nobody_sent_is_found(device: Device, journal: Journal) -> None:
    journal.add(Arrival(telemetry.HTTPS, "https-9", 1, "0"))
    (problem,) = verify_arrivals([device], journal.arrivals)
    assert "nobody sent: https-9 #1" in problem


@pytest.mark.parametrize(("connections", "problems"), [(1, 1), (2, 0)])
def test_a_message_may_arrive_twice_only_if_its_device_connected_again(
    device: Device, journal: Journal, connections: int, problems: int
) -> None:
    journal.add(journal.arrivals[Key("https-1", 1)][0])
    device.account.connections = connections
    assert len(verify_arrivals([device], journal.arrivals)) == problems


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"accepted": 2, "outcomes": {"ok": 2}}, "accepted 2 connections, devices made 1"),
        ({"active": 1, "outcomes": {}}, "1 connections are still active and 0 of 1 have an outcome"),
        ({"bytes_up": 3}, "3 bytes went up, less than the payload"),
    ],
)
def test_a_relay_that_counts_otherwise_is_found(
    device: Device, status: Any, change: dict[str, Any], complaint: str
) -> None:
    changed = copy.deepcopy(status)
    changed["listeners"][1].update(change)
    (problem,) = verify_relay([device], changed)
    assert problem.startswith("listener https: ")
    assert complaint in problem


def test_a_relay_that_does_not_answer_is_a_problem(device: Device) -> None:
    assert verify_relay([device], None) == ["the relay's admin port does not answer /status"]


async def test_waiting_for_arrivals_ends_with_the_last_one_or_with_the_time(journal: Journal) -> None:
    await journal.wait_for(set(journal.arrivals), 20.0)
    await journal.wait_for({Key("https-9", 1)}, 0.01)
    assert Key("https-9", 1) not in journal.arrivals
