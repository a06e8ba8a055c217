"""Thousands of TLS connections through a real relay while it is drained, reloaded, loses a worker, and is evicted.

    python -m bench.timeline [--connections 5000]        (or: make timeline)

Two relays with two workers each, on loopback. The devices start on the first relay. It is drained and undrained, and
the devices move to its sibling. The sibling is reloaded again and again, loses a worker to SIGKILL, and is evicted by a
stand-in metadata service with 30 s notice. At NotBefore all its processes are killed, as the platform would do. The
devices (two processes) and the hub record every message, so that lost ones are counted (`bench.timeline_figures`). The
picture, and the figures as JSON beside it, are written at the end. Takes some two minutes. The exit status is 1 if a
message was lost in an event that must lose none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from bench import end_in_order
from bench.timeline_figures import Happening, figures, read, table
from bench.timeline_picture import draw
from bench.timeline_rig import PATIENCE, Rig
from tests.support.metadata_server import OWN, Answer, MetadataServer, document, event

QUIET = 4.0  # seconds between two events
NOTICED = 1.0  # seconds from an event until a report of the devices reflects it
LOOK = 0.2  # seconds between two checks of a condition
RELOADING = 10.0  # seconds
PAUSE = 0.1  # seconds between two reloads
LONGEST = 240.0  # seconds for the whole run, also on a busy machine
NOTICE = 30.0  # seconds; what a Spot machine gets
LOSES_NOTHING = ("drain", "reload", "eviction")


class Timeline:
    """The run: one event after the other, each with its start and its end."""

    def __init__(self, rig: Rig, metadata: MetadataServer) -> None:
        self._fleet = rig.fleet
        self._upstreams = rig.upstreams
        self._relay, self._sibling = rig.relays
        self._metadata = metadata
        self._began = time.monotonic()
        self._said = 0.0
        self._acked = 0
        self.happenings: list[Happening] = []

    def run(self, connections: int, coming: float) -> None:
        """Run all events in order."""
        self._wait("devices come", self._fleet.complete, coming)
        self._rest()
        self._happen("drain", "Drain: 2 s announced, window 20 s", 0, self._drain)
        self._relay.post("/undrain")
        self._happen("reload", "Reload: other limits and upstreams", 1, lambda: self._reload(connections))
        self._happen("kill", "A worker killed with SIGKILL", 1, self._kill)
        self._happen("eviction", "Evicted with 30 s notice", 1, self._evict)

    def _wait(self, what: str, over: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + seconds
        while not over():
            if time.monotonic() > min(deadline, self._began + LONGEST):
                raise SystemExit(f"timeline: {what}: not over in time; fewer --connections may fit")
            self._say(what)
            time.sleep(LOOK)

    def _say(self, what: str) -> None:
        """Print a line of progress each second."""
        now = time.monotonic()
        if now < self._said + 1:
            return
        acked, (relay, sibling) = self._fleet.count("acked"), self._fleet.open()
        pace = (acked - self._acked) / (now - self._said)
        self._said, self._acked = now, acked
        print(
            f"{now - self._began:6.1f} s  {what:<20} relay {relay:>6,}  sibling {sibling:>6,}  "
            f"acknowledged {pace:>5,.0f}/s  closed {self._fleet.count('closed'):>6,}  "
            f"refused {self._fleet.count('refused'):,}  failed {self._fleet.count('failed'):,}",
            flush=True,
        )

    def _rest(self) -> None:
        """Wait until every device is connected again and has reported since the event, then stay quiet for a while."""
        noticed = time.monotonic() + NOTICED
        self._wait("they come back", lambda: self._fleet.fresh(noticed) and self._fleet.complete())
        until = time.monotonic() + QUIET
        self._wait("quiet", lambda: time.monotonic() >= until)

    def _happen(self, name: str, title: str, where: int, do: Callable[[], str]) -> None:
        before, began = self._fleet.open()[where], time.monotonic()
        said = do()
        until = time.monotonic()
        self._rest()
        self.happenings.append(Happening(name, title, where, before, began, until, time.monotonic(), said))

    def _drain(self) -> str:
        began = time.monotonic()
        self._relay.post("/drain")
        self._wait("drain", lambda: self._relay.phase() == "drained", 60)
        seconds = time.monotonic() - began
        return f"drained after {seconds:.1f} s"

    def _reload(self, connections: int) -> str:
        one, other = self._upstreams
        choices: list[dict[str, Any]] = [
            {"limit": connections + 2000, "upstream": [one]},
            {"limit": connections + 3000, "upstream": [other]},
            {"limit": connections + 1000, "upstream": [other, one]},
        ]
        until, count = time.monotonic() + RELOADING, 0
        while time.monotonic() < until:
            self._sibling.write(**choices[count % len(choices)])
            self._sibling.post("/reload")
            count += 1
            self._say("reload")
            time.sleep(PAUSE)
        return f"{count} reloads"

    def _kill(self) -> str:
        before, began = self._sibling.workers(), time.monotonic()
        os.kill(before[0], signal.SIGKILL)

        def replaced() -> bool:
            workers = self._sibling.workers()
            return len(workers) == len(before) and before[0] not in workers

        self._wait("worker killed", replaced)
        return f"another worker serves after {time.monotonic() - began:.1f} s"

    def _evict(self) -> str:
        assert self._sibling.process is not None
        notice = event("Preempt", OWN, left=NOTICE)
        not_before = parsedate_to_datetime(notice["NotBefore"]).timestamp()
        pids = [self._sibling.process.pid, *self._sibling.workers()]
        began = time.monotonic()
        self._metadata.events.play(Answer(document(notice)))
        self._wait("eviction", lambda: bool(self._metadata.approved) or time.time() >= not_before, 60)
        approved = time.monotonic() - began
        self._wait("eviction", lambda: time.time() >= not_before, 60)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self._metadata.approved:
            return "not empty in time, then killed"
        return f"empty and approved after {approved:.1f} s of the {NOTICE:g}, then killed"


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Run the events, count, draw the picture."""
    with contextlib.ExitStack() as stack:
        metadata = stack.enter_context(MetadataServer())
        rig = Rig(folder, metadata.url, options.connections, options.rate, options.every, options.newcomers)
        stack.callback(rig.close)
        timeline = Timeline(rig, metadata)
        engine = rig.relays[0].watch.status()["engine"]
        try:
            timeline.run(options.connections, options.connections / options.rate + 2 * PATIENCE)
            rig.fleet.finish()
        except (SystemExit, OSError):
            print(rig.logs(), file=sys.stderr)
            raise
        time.sleep(1)  # for messages under way to the hub
        records = read(rig.sent, rig.arrived())
    rows = [figures(happening, records) for happening in timeline.happenings]
    print(table(rows))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(timeline.happenings, rows, records, options.connections))
    machine = {"kernel": os.uname().release, "processors": os.cpu_count(), "python": sys.version.split()[0]}
    summary = {"connections": options.connections, "engine": engine, **machine, "events": rows}
    options.picture.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"written: {options.picture}, {options.picture.with_suffix('.json').name}")
    missing = sum(row["missing"] for row in rows)
    return 1 if missing or any(row["lost"] for row in rows if row["event"] in LOSES_NOTHING) else 0


def main() -> int:
    """The entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="bench.timeline", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=5000, help="devices (default %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="first connects per second (default %(default)s)")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between a device's messages")
    parser.add_argument("--newcomers", type=float, default=10.0, help="new devices per second (default %(default)s)")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("docs/images/timeline.svg"),
        help="SVG file to write; the figures go beside it as .json",
    )
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    if not 10 <= options.connections <= most:
        parser.error(f"--connections: 10 to {most:,}, half of what this shell lets a process open (ulimit -n)")
    with tempfile.TemporaryDirectory(prefix="relay-timeline-") as folder:
        return measure(options, Path(folder))


if __name__ == "__main__":
    end_in_order()
    raise SystemExit(main())
