"""The devices of the timeline, thousands in one process: they send numbered messages over TLS and record every close.

    python -m bench.timeline_load JSON        (the fields of `Task`)

A device connects to its relay while that one is ready, as a load balancer's probes see it, else to the sibling. It
sends a message every few seconds. When its connection ends it calls again within a second, and sends again what was not
acknowledged, as MQTT's QoS 1 has it. Besides, newcomers connect, say one thing and leave, all the time.

Prints the state of things twice a second. "finish" on standard input: no more new messages, wait for the
acknowledgements, write everything that happened to `record`, end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.timeline_upstream import ACK, HEAD, MESSAGE, small_buffers

HUB = "hub.example"
JITTER = 1.0  # seconds within which a device reconnects, at random
PROBE = 0.5  # seconds between two probes of a relay's readiness; the load balancers of clouds take ten times that
PROBES = 2  # failed in a row take a relay out
ANSWER = 5.0  # timeout of a probe in seconds
TURNS = 200  # handshakes at once, so that connected devices do not wait behind hundreds of them
HANDSHAKE = 30.0  # timeout in seconds; everything is on one machine, which may be busy
LAST_ACKS, LOOKS = 10.0, 100  # seconds to wait for the last acknowledgements, and the number of checks in that time
PADDING = bytes(MESSAGE - HEAD.size)


@dataclass(frozen=True, slots=True)
class Task:
    """The orders for one process."""

    ports: list[int]  # of the two relays' listeners
    health: list[int]  # health ports, likewise
    authority: str
    record: str
    first: int  # number of its first device
    devices: int
    rate: float  # first connects per second
    every: float  # seconds between a device's messages
    newcomers: float  # per second


@dataclass(slots=True)
class Record:
    """Everything that happened, with monotonic times. `where` is the index of the relay, `how` is end or reset."""

    opened: list[tuple[float, int]] = field(default_factory=list)  # time, where
    closed: list[tuple[float, int, str]] = field(default_factory=list)  # time, where, how
    away: list[tuple[float, float]] = field(default_factory=list)  # time it came back, seconds without a connection
    sent: list[tuple[float, int, int, int]] = field(default_factory=list)  # time, device, number, connection
    acked: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)  # times of messages sent again
    refused: list[float] = field(default_factory=list)  # times of refused connects
    failed: list[tuple[float, str]] = field(default_factory=list)  # connects that failed otherwise: time, reason
    served: list[float] = field(default_factory=list)  # times at which newcomers got their acknowledgement


class Line(asyncio.Protocol):
    """One connection of a device after its handshake."""

    def __init__(self, device: Device, where: int) -> None:
        self._device = device
        self.where = where
        self.number = device.connections = device.connections + 1
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._device.up(self)

    def data_received(self, data: bytes) -> None:
        # An acknowledgement is one small record of TLS, and comes whole.
        for (number,) in ACK.iter_unpack(data):
            self._device.acknowledged(number)

    def eof_received(self) -> None:
        self._device.down(self, "end")

    def connection_lost(self, error: Exception | None) -> None:
        self._device.down(self, "reset" if error is not None else "end")


class Device:
    """Numbers its messages and keeps the unacknowledged ones. `leaves`: a newcomer, gone after one message."""

    def __init__(self, fleet: Fleet, number: int, home: int, *, leaves: bool = False) -> None:
        self._fleet = fleet
        self._number = number
        self.home = home
        self.leaves = leaves
        self.connections = 0
        self._line: Line | None = None
        self._next = 0
        self._waiting: dict[int, bool] = {}  # unacknowledged messages: whether each was sent already
        self._since = 0.0  # monotonic time since which it has no connection

    @property
    def quiet(self) -> bool:
        return not self._waiting

    def up(self, line: Line) -> None:
        now = time.monotonic()
        self._line, self.home = line, line.where
        if not self.leaves:
            self._fleet.open[line.where] += 1
            self._fleet.record.opened.append((now, line.where))
        if self._since:
            self._fleet.record.away.append((now, now - self._since))
        for number, sent in self._waiting.items():
            if sent:
                self._fleet.record.again.append(now)
            self._send(number)

    def down(self, line: Line, how: str) -> None:
        if self._line is not line:
            return
        self._line, self._since = None, time.monotonic()
        if not self.leaves:
            self._fleet.open[line.where] -= 1
            self._fleet.record.closed.append((self._since, line.where, how))
        self._fleet.bring(self, random.uniform(0, JITTER))

    def speak(self) -> None:
        """Send the next message."""
        self._next += 1
        self._waiting[self._next] = False
        self._send(self._next)

    def acknowledged(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._fleet.record.acked.append(time.monotonic())
        if self.leaves and self._line is not None and self._line.transport is not None:
            line, self._line = self._line, None
            assert line.transport is not None
            line.transport.close()
            self._fleet.record.served.append(time.monotonic())

    def _send(self, number: int) -> None:
        line = self._line
        if line is None or line.transport is None:
            return
        line.transport.write(HEAD.pack(self._number, number, line.number) + PADDING)
        self._waiting[number] = True
        self._fleet.record.sent.append((time.monotonic(), self._number, number, line.number))


class Fleet:
    """All devices of this process, and the load balancer's view of the relays."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.open = [0, 0]
        self.record = Record()
        self._ready = [True, True]
        self._turns = asyncio.Semaphore(TURNS)
        self._finishing = asyncio.Event()
        self._devices: list[Device] = []
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._context = ssl.create_default_context(cafile=task.authority)

    async def run(self) -> None:
        """Run until told to finish."""
        self._spawn(self._obey())
        for where in (0, 1):
            threading.Thread(target=self._probe, args=(where,), daemon=True).start()
        self._spawn(self._report())
        await self._start()
        self._spawn(self._newcomers())
        await self._finishing.wait()
        for _ in range(LOOKS):
            if all(device.quiet for device in self._devices):
                break
            await asyncio.sleep(LAST_ACKS / LOOKS)

    def bring(self, device: Device, delay: float) -> None:
        """Connect a device after a delay in seconds."""
        self._spawn(self._connect(device, delay))

    async def _start(self) -> None:
        began = time.monotonic()
        for count in range(self.task.devices):
            await asyncio.sleep(max(0.0, began + count / self.task.rate - time.monotonic()))
            device = Device(self, self.task.first + count, 0)
            self._devices.append(device)
            self.bring(device, 0.0)
            self._spawn(self._talk(device))

    async def _talk(self, device: Device) -> None:
        await asyncio.sleep(random.uniform(0, self.task.every))
        while not self._finishing.is_set():
            device.speak()
            await asyncio.sleep(self.task.every * random.uniform(0.9, 1.1))

    async def _newcomers(self) -> None:
        number = self.task.first + 1_000_000
        while not self._finishing.is_set():
            number += 1
            device = Device(self, number, random.randrange(2), leaves=True)
            device.speak()
            self.bring(device, 0.0)
            await asyncio.sleep(1 / self.task.newcomers)

    async def _connect(self, device: Device, delay: float) -> None:
        await asyncio.sleep(delay)
        while True:
            where = device.home
            try:
                async with self._turns:
                    where = self._choose(device.home)
                    await self._loop.create_connection(
                        lambda where=where: Line(device, where),  # type: ignore[misc]
                        "127.0.0.1",
                        self.task.ports[where],
                        ssl=self._context,
                        server_hostname=HUB,
                        ssl_handshake_timeout=HANDSHAKE,
                    )
            except ConnectionRefusedError:
                self.record.refused.append(time.monotonic())
                device.home = 1 - where
            except OSError as error:
                self.record.failed.append((time.monotonic(), f"{type(error).__name__}: {error}"))
            else:
                return
            await asyncio.sleep(random.uniform(0.1, JITTER))

    def _choose(self, home: int) -> int:
        """The relay that a device used last, unless that one is not ready and the other one is."""
        return 1 - home if self._ready[1 - home] and not self._ready[home] else home

    def _probe(self, where: int) -> None:
        """Probe the relays in a thread of its own, since a load balancer does not wait for its clients' handshakes."""
        bad = 0
        while True:
            bad = 0 if _is_ready(self.task.health[where]) else bad + 1
            self._ready[where] = bad < PROBES if self._ready[where] else bad == 0
            time.sleep(PROBE)

    async def _report(self) -> None:
        while True:
            record = self.record
            counts = {"acked": len(record.acked), "closed": len(record.closed), "refused": len(record.refused)}
            counts["failed"] = len(record.failed)
            print(json.dumps({"at": time.monotonic(), "open": self.open, **counts}), flush=True)
            await asyncio.sleep(0.5)

    async def _obey(self) -> None:
        await self._loop.run_in_executor(None, sys.stdin.readline)
        self._finishing.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.add(task := self._loop.create_task(work))
        task.add_done_callback(self._running.discard)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=ANSWER):
            return True
    except OSError:  # also raised for a status other than 200
        return False


async def run(task: Task) -> Record:
    """Run the process."""
    small_buffers()
    fleet = Fleet(task)
    await fleet.run()
    return fleet.record


def main() -> int:
    """The entry point of the process."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # failed handshakes are in the record already
    task = Task(**json.loads(sys.argv[1]))
    record = asyncio.run(run(task))
    Path(task.record).write_text(json.dumps(asdict(record)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
