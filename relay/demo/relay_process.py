"""The demo's relay: writes its settings, starts `relay run`, waits until it is ready, and reads its status.

The demo runs the relay as an operator does, and uses only what an operator has: settings, log, health and admin port,
signals.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from relay.demo.process import KILL_GRACE, DemoError, end, spawn, tail, tied
from relay.supervisor.admin.status_schema import RelayStatus

READY = 20.0  # seconds until the relay takes traffic
POLL = 0.05  # seconds
ANSWER = 5.0  # seconds that an admin request may take
WORKERS = 2
DRAIN_WINDOW = 5.0  # seconds
END_NOW = 8.0  # seconds for an immediate end, in which the supervisor may have to kill its workers

# With port 0 the kernel chooses, so that the demo runs beside anything; the relay logs the port that it got.
SETTINGS = """\
workers = {workers}

[drain]
announce = 0.0
window = {window}

[admin]
bind = "127.0.0.1:0"

[health]
bind = "127.0.0.1:0"
"""
LISTENER = """
[[listeners]]
name = "{name}"
bind = ["127.0.0.1:0"]
upstream = ["127.0.0.1:{port}"]
"""


class Relay:
    """The relay's process. `upstreams` are the hub's ports by listener name."""

    def __init__(self, directory: Path, upstreams: Mapping[str, int]) -> None:
        self.config = directory / "relay.toml"
        self.log = directory / "relay.log"
        self.ports: dict[str, int] = {}
        self.admin = ""
        self._upstreams = upstreams
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> RelayStatus:
        """Start the relay, wait until it takes traffic, return its status. Raises DemoError with the end of its log."""
        settings = SETTINGS.format(workers=WORKERS, window=DRAIN_WINDOW)
        listeners = (LISTENER.format(name=name, port=port) for name, port in self._upstreams.items())
        self.config.write_text(settings + "".join(listeners))
        command = [sys.executable, "-m", "relay", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self._process = await spawn(tied(command), stdin=asyncio.subprocess.DEVNULL, stdout=log, log=log)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER))
        why = "its log does not have its admin and health ports"
        try:
            async with asyncio.timeout(READY):
                while not (ports := self._announced()):
                    self._still_starting()
                    await asyncio.sleep(POLL)
                self.admin = ports["admin"]
                while (why := await self._not_ready(f"{ports['health']}/readyz")) != "":
                    self._still_starting()
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise self._failed(f"the relay was not ready within {READY:.0f} s: {why}") from None
        status = await self.status()
        if status is None:
            raise self._failed(f"the relay is ready, but {self.admin}/status does not answer")
        self.ports = {item["name"]: int(item["bind"][0].rpartition(":")[2]) for item in status["listeners"]}
        return status

    async def status(self) -> RelayStatus | None:
        """The relay's /status, or None if the admin port does not answer."""
        assert self._http is not None
        try:
            async with self._http.get(f"{self.admin}/status") as answer:
                if answer.status != 200:
                    return None
                status: RelayStatus = await answer.json()
                return status
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def stop(self) -> bool:
        """Drain the relay, end it at once if that takes too long; True if it ended without being killed."""
        if self._http is not None:
            await self._http.close()
        if self._process is None:
            return True
        return await end(self._process, (signal.SIGTERM, DRAIN_WINDOW + KILL_GRACE), (signal.SIGINT, END_NOW))

    def _still_starting(self) -> None:
        if not self.running:
            assert self._process is not None
            raise self._failed(f"the relay ended at its start, exit status {self._process.returncode}")

    def _failed(self, what: str) -> DemoError:
        return DemoError(f"{what}; the end of its log:\n{tail(self.log)}")

    def _announced(self) -> dict[str, str]:
        """The URLs of the admin and the health port; empty until the log has both."""
        found: dict[str, str] = {}
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # half written, or an error message that is not a log line
            if isinstance(entry, dict) and entry.get("event") == "listening":
                found[entry["listener"]] = f"http://{entry['bind'][0]}"
        return found if {"admin", "health"} <= found.keys() else {}

    async def _not_ready(self, url: str) -> str:
        """Why the relay is not ready; empty if it is."""
        assert self._http is not None
        try:
            async with self._http.get(url) as answer:
                text = (await answer.text()).strip()
                return "" if answer.status == 200 else f"{url} answers {answer.status} {text}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{url}: {str(error) or 'no answer'}"
