"""`relay demo --once`: sends a fixed number of messages, then verifies at the hub and at the relay that all arrived.

What the devices count as sent is compared with the hub's record of arrivals and with the relay's counters. Three
different processes keep these numbers.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set

from rich.console import Console
from rich.table import Table

from relay.commands.format import size
from relay.demo import telemetry
from relay.demo.devices import Device
from relay.demo.relay_process import Relay
from relay.demo.rig import Rig, say
from relay.supervisor.admin.status_schema import RelayStatus

MESSAGES = 20  # from each device
INTERVAL = 0.1  # seconds between a device's messages
DEADLINE = 45.0  # seconds for starting and sending; with settling and ending, a run stays below a minute
SETTLE = 5.0  # seconds for the last arrivals to be recorded, and for the relay to see the connections end
POLL = 0.05  # seconds
SHOWN = 10  # missing messages that are named
PIPE_WIDTH = 120  # columns of the summary where there is no terminal


class Journal:
    """The messages that the hub recorded, by key."""

    def __init__(self) -> None:
        self.arrivals: dict[telemetry.Key, list[telemetry.Arrival]] = {}
        self._arrived = asyncio.Event()

    def add(self, arrival: telemetry.Arrival) -> None:
        """Add one arrival."""
        self.arrivals.setdefault(arrival.key, []).append(arrival)
        self._arrived.set()

    async def wait_for(self, keys: Set[telemetry.Key], seconds: float) -> None:
        """Wait until messages with all these keys have arrived, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not keys <= self.arrivals.keys():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass  # the caller finds what is missing in `arrivals`


async def run_once(rig: Rig, journal: Journal) -> int:
    """Start, send, verify and print the verdict; returns the exit status. Raises DemoError if the demo cannot start."""
    problems: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE):
            await rig.start()
            say(f"sending: {MESSAGES} messages from each device, {MESSAGES * len(rig.devices)} in all")
            await _send(rig)
    except TimeoutError:
        problems.append(f"not everything was acknowledged within {DEADLINE:.0f} s")
    say("verifying: the hub's record against what each device sent, and the relay's counters against both")
    # The hub records a message a moment after it has acknowledged it.
    await journal.wait_for({key for device in rig.devices for key in _digests(device)}, SETTLE)
    await rig.close_devices()
    status = await _quiet(rig.relay) if rig.relay is not None else None
    problems += verify_arrivals(rig.devices, journal.arrivals)
    problems += verify_relay(rig.devices, status)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, emoji=False, width=width).print(summary(rig.devices, journal.arrivals, status))
    again = sum(len(found) > 1 for found in journal.arrivals.values())
    if again:
        say(f"  {again} arrived more than once: sent again over a new connection, as QoS 1 and HTTP retries do")
    for problem in problems:
        say(f"  {problem}")
    expected = MESSAGES * len(rig.devices)
    arrived = len(journal.arrivals)
    say(f"{'FAIL' if problems else 'PASS'}: {arrived} of {expected} messages arrived at the hub through the relay")
    return 1 if problems else 0


def verify_arrivals(
    devices: Sequence[Device], arrivals: Mapping[telemetry.Key, Sequence[telemetry.Arrival]]
) -> list[str]:
    """The faults in the hub's record, one line for each kind."""
    sent = {key: (digest, device.protocol) for device in devices for key, digest in _digests(device).items()}
    problems = []
    missing = [key for key in sent if key not in arrivals]
    if missing:
        problems.append(f"{len(missing)} messages did not arrive: {_names(missing)}")
    altered = [key for key, (digest, _) in sent.items() if any(one.digest != digest for one in arrivals.get(key, ()))]
    if altered:
        problems.append(f"{len(altered)} messages arrived with other bytes than were sent: {_names(altered)}")
    strayed = [key for key, (_, how) in sent.items() if any(one.protocol != how for one in arrivals.get(key, ()))]
    if strayed:
        problems.append(
            f"{len(strayed)} messages arrived by another protocol than they were sent by: {_names(strayed)}"
        )
    unknown = [key for key in arrivals if key not in sent]
    if unknown:
        problems.append(f"{len(unknown)} messages arrived that nobody sent: {_names(unknown)}")
    # A device may send again over a new connection what was not acknowledged on the old one, and only then.
    twice = [
        key
        for device in devices
        if device.account.connections <= 1
        for key in _digests(device)
        if len(arrivals.get(key, ())) > 1
    ]
    if twice:
        problems.append(f"{len(twice)} messages arrived more than once over one connection: {_names(twice)}")
    return problems


def verify_relay(devices: Sequence[Device], status: RelayStatus | None) -> list[str]:
    """The faults in the relay's own numbers after all devices have disconnected; a line each."""
    if status is None:
        return ["the relay's admin port does not answer /status"]
    problems = []
    listeners = {item["name"]: item for item in status["listeners"]}
    for protocol in telemetry.PROTOCOLS:
        of_protocol = [device for device in devices if device.protocol == protocol]
        made = sum(device.account.connections for device in of_protocol)
        payload = sum(device.account.payload_bytes for device in of_protocol)
        item = listeners[protocol]
        ended = sum(item["outcomes"].values())
        if item["accepted"] != made:
            problems.append(
                f"listener {protocol}: the relay accepted {item['accepted']} connections, devices made {made}"
            )
        if item["active"] != 0 or ended != item["accepted"]:
            problems.append(
                f"listener {protocol}: {item['active']} connections are still active and {ended} of"
                f" {item['accepted']} have an outcome, although all devices have gone"
            )
        if item["bytes_up"] < payload:
            problems.append(
                f"listener {protocol}: {item['bytes_up']} bytes went up, less than the payload of {payload}"
            )
    return problems


def summary(
    devices: Sequence[Device],
    arrivals: Mapping[telemetry.Key, Sequence[telemetry.Arrival]],
    status: RelayStatus | None,
) -> Table:
    """One row for each protocol: round trips, bytes through the relay, and how its connections ended."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("protocol", no_wrap=True)
    for name in ("devices", "sent", "arrived", "median ms", "max ms", "up", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcomes", overflow="fold")
    listeners = {item["name"]: item for item in status["listeners"]} if status is not None else {}
    for protocol in telemetry.PROTOCOLS:
        of_protocol = [device for device in devices if device.protocol == protocol]
        came = [found for found in arrivals.values() if found[0].protocol == protocol]
        trips = [seconds for device in of_protocol for seconds in device.account.round_trips]
        item = listeners.get(protocol)
        table.add_row(
            protocol,
            str(len(of_protocol)),
            str(sum(device.account.sent for device in of_protocol)),
            str(len(came)),
            milliseconds(statistics.median(trips)) if trips else "-",
            milliseconds(max(trips)) if trips else "-",
            size(item["bytes_up"]) if item else "-",
            size(item["bytes_down"]) if item else "-",
            outcomes(item["outcomes"]) if item else "-",
        )
    return table


def milliseconds(seconds: float) -> str:
    """A time as milliseconds, for a table."""
    return f"{seconds * 1000:.1f}"


def outcomes(counts: Mapping[str, int]) -> str:
    """Outcomes of connections with their counts, most frequent first."""
    return ", ".join(f"{label} {count}" for label, count in Counter(counts).most_common() if count) or "-"


async def _send(rig: Rig) -> None:
    """Let all devices send their messages. Raises DemoError if the hub or the relay ends meanwhile."""
    sending = asyncio.gather(*(device.run(MESSAGES, INTERVAL) for device in rig.devices))
    try:
        while not sending.done():
            rig.check()
            await asyncio.wait({sending}, timeout=POLL)
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _quiet(relay: Relay) -> RelayStatus | None:
    """The relay's status once every connection has an outcome, or its status after SETTLE seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE
    while True:
        status = await relay.status()
        if status is not None:
            connections = status["connections"]
            if connections["active"] == 0 and sum(connections["outcomes"].values()) == connections["accepted"]:
                return status
        if loop.time() > deadline:
            return status
        await asyncio.sleep(POLL)


def _digests(device: Device) -> Mapping[telemetry.Key, str]:
    assert device.account.digests is not None, "a run that is verified keeps them"
    return device.account.digests


def _names(keys: Sequence[telemetry.Key]) -> str:
    names = ", ".join(f"{key.device} #{key.sequence}" for key in keys[:SHOWN])
    return f"{names}, and {len(keys) - SHOWN} more" if len(keys) > SHOWN else names
