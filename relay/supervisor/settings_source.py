"""The report that `relay fetch-settings` leaves about where the settings of this machine come from.

The command runs once a minute, as root and in a unit of its own; it writes the report to `azure.settings_state`, and
the supervisor reads it from there for /healthz, /status and the metrics. Without the file there is no report: settings
then come from an operator. A source that fails changes nothing about the relay's health: it goes on with the settings
that it has.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from relay.supervisor.upstreams.watched_file import WatchedFile

if TYPE_CHECKING:  # `relay fetch-settings`, which runs every minute, needs the report and no log
    from relay.supervisor.service_log import ServiceLog

INTERVAL = 2.0  # seconds between two looks at the file
STALE = 600.0  # seconds after which a report counts as a failure: its timer no longer runs
MAX_ERROR = 300  # characters


@dataclass(frozen=True, slots=True)
class Report:
    """What came of the last attempt, and what the next one has to know.

    `checked_boot` is the time of the attempt on CLOCK_BOOTTIME, in seconds, which every process of this boot shares:
    a step of the wall clock makes no report stale.
    """

    up: bool = False  # the settings were fetched and are valid, and a running relay has them in force
    error: str = ""  # why not
    held_back: str = ""  # why this machine does not take valid new settings yet
    checked_at: str = ""  # RFC 3339, UTC
    checked_boot: float = 0.0
    hash: str = ""  # `settings.fingerprint` of the settings in the file; empty: there are no valid ones
    content: str = ""  # SHA-256 of the file that was written from the source
    blob: str = ""  # URL of the blob that was read; empty: none
    etag: str = ""  # of the blob that is in the file
    pending_etag: str = ""  # of the blob that is held back
    pending_salt: str = ""  # and the salt of its rollout
    reloaded: str = ""  # process number and hash of the last reload that was asked for
    reload_error: str = ""  # what the relay said

    def age(self, now: float) -> float | None:
        """Seconds since the attempt, on CLOCK_BOOTTIME; None if it was before this boot."""
        return now - self.checked_boot if now >= self.checked_boot else None

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse(text: str) -> Report:
    """A report from the file's text; fields that are unknown here are left out. Raises ValueError."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    known = {field.name: type(field.default) for field in fields(Report)}
    for name, value in found.items():
        if name in known and type(value) is not known[name]:
            raise ValueError(f"{name}: {value!r:.60} is of another type")
    return Report(**{name: value for name, value in found.items() if name in known})


def now() -> float:
    """The time on CLOCK_BOOTTIME, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SettingsSource:
    """Follows the report in a file, and logs when the source begins or ceases to fail."""

    def __init__(self, path: str, log: ServiceLog) -> None:
        self._file: WatchedFile[Report | None] | None = None
        if path:
            self._file = WatchedFile(Path(path), parse, None)
        self._log = log
        self._report: Report | None = None
        self._said = ("", "")  # error and reason to hold back that were logged last

    async def run(self) -> None:
        """Read the file now and then, for as long as the relay runs."""
        while self._file is not None:
            self._report = await self._file.current()
            self._say()
            await asyncio.sleep(INTERVAL)

    @property
    def report(self) -> Report | None:
        """The last report; None if there is none."""
        return self._report

    def error(self) -> str:
        """Why the source counts as failing; empty if it does not, or there is no report."""
        report = self._report
        if report is None:
            return ""
        age = report.age(now())
        if age is None or age > STALE:
            since = "since the boot" if age is None else f"for {age:.0f} s"
            return f"not asked {since}; see systemctl status relay-settings.timer"
        return "" if report.up else report.error[:MAX_ERROR] or "unknown"

    def _say(self) -> None:
        error, report = self.error(), self._report
        # A stale report gets older: only that it is stale is news.
        key = "not asked" if error.startswith("not asked ") else error
        held_back = report.held_back if report is not None and not error else ""
        before, self._said = self._said, (key, held_back)
        if key and key != before[0]:
            self._log.warning("settings source fails", error=error)
        elif before[0] and not key:
            self._log.warning("settings source works again" if report is not None else "settings source is gone")
        if held_back and held_back != before[1]:
            self._log.info("settings held back", reason=held_back)
