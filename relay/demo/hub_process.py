"""Starts the process of the stand-in hub and reads its record of arrivals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from relay.demo import telemetry
from relay.demo.process import KILL_GRACE, DemoError, end, ended, spawn, tail

START = 15.0  # seconds until the hub prints its ports


class Hub:
    """The hub's process. `on_arrival` is called for each message that the hub received."""

    def __init__(
        self, directory: Path, server_pem: Path, on_arrival: Callable[[telemetry.Arrival], None] | None = None
    ) -> None:
        self.log = directory / "hub.log"
        self.ports: dict[str, int] = {}
        self.received: Counter[str] = Counter()  # messages by protocol
        self._server_pem = server_pem
        self._on_arrival = on_arrival
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the hub and read its ports. Raises DemoError with the end of its log."""
        pipe = asyncio.subprocess.PIPE
        with self.log.open("ab") as log:
            self._process = await spawn(
                [sys.executable, "-m", "relay.demo.hub", str(self._server_pem)], stdin=pipe, stdout=pipe, log=log
            )
        assert self._process.stdout is not None
        try:
            first = await asyncio.wait_for(self._process.stdout.readline(), START)
        except TimeoutError:
            first = b""
        if not first:
            raise DemoError(f"the stand-in hub did not start; the end of its log:\n{tail(self.log)}")
        self.ports = json.loads(first)
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def stop(self) -> bool:
        """End the hub; True if it ended without being killed."""
        if self._process is None:
            return True
        assert self._process.stdin is not None
        self._process.stdin.close()  # the hub ends with its standard input, as it would if the demo died
        ended_well = await ended(self._process, KILL_GRACE) or await end(self._process, (signal.SIGTERM, KILL_GRACE))
        if self._reader is not None:
            await self._reader  # the pipe has ended with the process
        return ended_well

    async def _read(self, record: asyncio.StreamReader) -> None:
        while line := await record.readline():
            if not line.endswith(b"\n"):
                break  # cut short by SIGKILL
            arrival = telemetry.Arrival.from_line(line)
            self.received[arrival.protocol] += 1
            if self._on_arrival is not None:
                self._on_arrival(arrival)
