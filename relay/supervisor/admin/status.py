"""What the relay knows about itself, as plain values: the numbers behind /status, /metrics and the health paths.

Everything is read from the shared table when somebody asks; nothing is kept here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import relay
from relay.address import format_hostport
from relay.core import counters, failed_dials
from relay.core.counters import OUTCOME
from relay.core.limit_table import total_held
from relay.outcome import OUTCOMES
from relay.settings.model import value as setting
from relay.supervisor.drainer import Drainer
from relay.supervisor.instance import BoundListener, Instance
from relay.supervisor.reload import FIXED
from relay.supervisor.upstreams.monitor import UpstreamMonitor
from relay.supervisor.worker_pool import WorkerPool
from relay.supervisor.worker_process import WorkerProcess

NANO = 1_000_000_000
ANY_SOURCE = "any"  # the kernel's choice
OTHER_ADDRESSES = "other"
UNREADY_GRACE = 2.0  # seconds that a worker may be missing before the instance is called not ready


@dataclass(slots=True)
class Health:
    """Whether a path answers 200, and why not, or what is amiss nevertheless."""

    ok: bool
    reason: str = ""


class Status:
    """Reads instance, pool, watch, drain and table."""

    def __init__(
        self, instance: Instance, pool: WorkerPool, monitor: UpstreamMonitor, log_dropped: Callable[[], int]
    ) -> None:
        self.drain: Drainer | None = None  # the supervisor's; it asks this for numbers
        self.reloads: dict[str, int] = {"ok": 0, "failed": 0}  # the supervisor's
        self.http_ports: dict[str, str] = {}  # host:port of the admin and health ports, the supervisor's
        self.evictions: Callable[[], dict[str, Any]] | None = None  # where scheduled events are watched
        self._instance = instance
        self._pool = pool
        self._monitor = monitor
        self._log_dropped = log_dropped  # by the supervisor itself
        self._started = time.monotonic()
        self._was_ready = False

    @property
    def draining(self) -> bool:
        return self.drain is not None and self.drain.state.draining

    def active(self) -> int:
        """Connections that have not ended."""
        layout = self._instance.layout
        rows = self._pool.look()
        return sum(counters.unfinished(layout, row, index) for row in rows for index in range(layout.listeners))

    def totals(self) -> list[int]:
        """All workers' counters added up, those of dead ones included; gauges are not to be read from it.

        What stands behind the counters is not in it.
        """
        return self._added(self._pool.look())

    def _added(self, rows: list[list[int]]) -> list[int]:
        end = self._instance.layout.gauges
        totals = list(map(sum, zip(self._pool.retired[:end], *(row[:end] for row in rows), strict=True)))
        totals[counters.LOG_DROPPED] += self._log_dropped()
        return totals

    def live(self) -> Health:
        """Every worker's own loop answers."""
        now = time.monotonic()
        hung = [str(worker.index) for worker in self._pool.workers if self._pool.hung(worker, now)]
        return Health(not hung, f"worker {', '.join(hung)}: loop does not answer" if hung else "")

    def ready(self) -> Health:
        """New connections are welcome here."""
        if self.draining:
            return Health(False, "draining")
        now = time.monotonic()
        looping = [str(worker.index) for worker in self._pool.workers if self._pool.looping(worker, now)]
        if looping:
            return Health(False, f"worker {', '.join(looping)}: crash-looping")
        missing = [worker for worker in self._pool.workers if not worker.ready]
        if not missing:
            if not self._was_ready and self._monitor.unresolved():
                return Health(False, "starting")
            self._was_ready = True
            alone = self._without_upstream()
            # While one listener can be served the instance is of use: a load balancer that took it away would take all.
            reason = f"no upstream: {', '.join(map(self._alone, alone))}" if alone else ""
            return Health(len(alone) < len(self._instance.listeners), reason)
        if not self._was_ready:
            return Health(False, "starting")
        gone = [str(worker.index) for worker in missing if now - worker.unready_since > UNREADY_GRACE]
        if gone or len(missing) == len(self._pool.workers):
            return Health(False, f"worker {', '.join(gone) or 'processes'}: not running")
        return Health(True)

    def _without_upstream(self) -> list[BoundListener]:
        """The listeners none of whose upstream addresses are up. Connections are tried there all the same."""
        up = {number: self._monitor.state(number).up for number in self._instance.dialled}
        return [bound for bound in self._instance.listeners if not any(up[number] for number, _, _ in bound.upstreams)]

    def _alone(self, bound: BoundListener) -> str:
        """The listener's name, with those of its upstream addresses that are never dialled, and why."""
        barred: dict[str, str] = {}
        for number, _, _ in bound.upstreams:
            barred |= self._monitor.state(number).barred
        reasons = ", ".join(f"{address} is {why}" for address, why in barred.items())
        return f"{bound.name} ({reasons})" if reasons else bound.name

    def state(self) -> str:
        """starting, ready, unready or draining."""
        ready = self.ready()
        if ready.ok:
            return "ready"
        return ready.reason if ready.reason in ("draining", "starting") else "unready"

    def snapshot(self) -> dict[str, Any]:
        """What /status shows."""
        instance, rows = self._instance, self._pool.look()  # once: it goes through all workers' cells
        totals = self._added(rows)
        ready = self.ready()
        listeners = [self._listener(name, number, totals) for name, number in instance.listener_numbers.items()]
        current = {bound.name for bound in instance.listeners}
        outcomes = {outcome.label: 0 for outcome in OUTCOMES}
        for listener in listeners:
            for label, count in listener["outcomes"].items():
                outcomes[label] += count
        now = time.monotonic()
        return {
            "version": relay.__version__,
            "engine": instance.engine,
            "engine_reason": instance.engine_reason,
            "pid": os.getpid(),
            "uptime_seconds": round(now - self._started, 3),
            "state": self.state(),
            "reason": ready.reason,
            "live": self.live().ok,
            "drain": self.drain_state(),
            "max_connections": instance.limits.instance,
            "descriptors": instance.descriptors,
            "connections": {
                "active": sum(listener["active"] for listener in listeners),
                "admitted": total_held(instance.limits, instance.table.counts),
                "accepted": sum(listener["accepted"] for listener in listeners),
                "outcomes": outcomes,
            },
            "bytes": {
                "up": sum(listener["bytes_up"] for listener in listeners),
                "down": sum(listener["bytes_down"] for listener in listeners),
            },
            # One that a reload has removed is shown as long as it has connections.
            "listeners": [one for one in listeners if one["name"] in current or one["active"]],
            "upstreams": [self._upstream(number, instance.upstreams[number]) for number in instance.dialled],
            "dial_queue": self.queued(),
            "workers": [self._worker(worker, rows[worker.index], now) for worker in self._pool.workers],
            "scheduled_events": self.evictions() if self.evictions is not None else None,
            "http_ports": dict(self.http_ports),
            "reloads": dict(self.reloads),
            "start_only": {name: setting(instance.settings, name) for name in FIXED},
            "accept_pauses": totals[counters.ACCEPT_PAUSES],
            "log_lines_dropped": totals[counters.LOG_DROPPED],
        }

    def drain_state(self) -> dict[str, Any] | None:
        """What /status shows of a drain; None while there is none."""
        return self.drain.snapshot() if self.drain is not None and self.draining else None

    def _listener(self, name: str, number: int, totals: list[int]) -> dict[str, Any]:
        instance, start = self._instance, self._instance.layout.listener(number)
        bound = next((one for one in instance.listeners if one.number == number), None)
        return {
            "name": name,
            "bind": bound.addresses if bound is not None else [],
            "upstream": [instance.upstreams[one] for one, _, _ in bound.upstreams] if bound is not None else [],
            "active": counters.unfinished(instance.layout, totals, number),
            "accepted": totals[start + counters.ACCEPTED],
            "max_connections": bound.max_connections if bound is not None else 0,
            "bytes_up": totals[start + counters.BYTES_UP],
            "bytes_down": totals[start + counters.BYTES_DOWN],
            "outcomes": {o.label: n for o in OUTCOMES if (n := totals[start + OUTCOME + o.index])},
        }

    def queued(self) -> int:
        """Connections that wait for their turn to be dialled."""
        return sum(block[counters.QUEUED] for block in self._instance.table.blocks)

    def failed_dials(self) -> dict[tuple[int, str], list[int]]:
        """Dials of clients' connections that failed, by upstream number and address, each `DIAL_FAILURES`' count.

        Every address that is dialled now is there, with zeros if none has failed; OTHER_ADDRESSES where an upstream had
        too many to tell apart.
        """
        instance = self._instance
        # Of upstreams that there are: a worker that was taken over may have written to the spare places.
        numbers = range(len(instance.upstreams))
        counts: failed_dials.Counts = {
            key: list(values) for key, values in self._pool.retired_dials.items() if key[0] in numbers
        }
        for seen in self._pool.look():
            for number in numbers:
                for key, more in failed_dials.counted(seen, instance.layout.failed(number)):
                    failed_dials.add(counts, number, key, more)
        found = {
            (number, address): [0] * failed_dials.KINDS
            for number in instance.dialled
            for address, _ in self._monitor.state(number).addresses
        }
        for (number, key), values in counts.items():
            address = failed_dials.address(key)
            shown = format_hostport(*address) if address is not None else OTHER_ADDRESSES
            # Added up: what a worker that was taken over writes may be another key for the same address.
            kept = found.setdefault((number, shown), [0] * failed_dials.KINDS)
            for kind, count in enumerate(values):
                kept[kind] += count
        return found

    def ports(self) -> list[tuple[str, int, int, int]]:
        """Source, upstream number, local ports in use and how many may be: for pairs of a source that is dialled from.

        An upstream has as many times the ports of a source as it has addresses.
        """
        instance = self._instance
        names = [*instance.settings.dial.source_addresses, ANY_SOURCE]
        found = []
        for number in instance.dialled:
            state = self._monitor.state(number)
            addresses = max(1, len(state.addresses) - len(state.barred))
            for source, name in enumerate(names):
                used = sum(block[instance.layout.ports(number, source)] for block in instance.table.blocks)
                if used or name is not ANY_SOURCE or len(names) == 1:
                    found.append((name, number, used, instance.source_ports * addresses))
        return found

    def _upstream(self, number: int, name: str) -> dict[str, Any]:
        state = self._monitor.state(number)
        return {
            "name": name,
            "up": state.up,
            "addresses": [
                {"address": address, "up": up, "reason": state.barred.get(address, "")}
                for address, up in state.addresses
            ],
            "error": state.error,
            "answer_age_seconds": None if state.answer_age is None else round(state.answer_age, 3),
        }

    def _worker(self, worker: WorkerProcess, block: list[int], now: float) -> dict[str, Any]:
        instance = self._instance
        beat = block[counters.HEARTBEAT]
        return {
            "index": worker.index,
            "pid": worker.pid,
            "ready": worker.ready,
            "hung": self._pool.hung(worker, now),
            "heartbeat_age_seconds": round(max(0.0, now - beat / NANO), 3) if beat else None,
            "loop_lag_seconds": block[counters.LAG] / NANO,
            "active": sum(counters.unfinished(instance.layout, block, i) for i in range(instance.layout.listeners)),
            "held_bytes": block[counters.HELD],
            "restarts": worker.restarts,
        }
