"""The relay's state as plain values: the numbers behind /status, /metrics and the health paths.

Each request reads the shared table anew; no number is kept here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import relay
from relay.address import format_hostport
from relay.core import counters, failed_dials
from relay.core.counters import OUTCOME
from relay.core.limit_table import Row, total_held
from relay.ipc.worker_spec import Destinations
from relay.outcome import OUTCOMES
from relay.settings.model import value as setting
from relay.supervisor.admin.status_schema import (
    DrainStatus,
    ListenerStatus,
    RelayStatus,
    RouteStatus,
    ScheduledEventsStatus,
    SettingsSourceStatus,
    UpstreamStatus,
    WorkerStatus,
)
from relay.supervisor.drainer import Drainer
from relay.supervisor.instance import BoundListener, Instance
from relay.supervisor.reload import FIXED
from relay.supervisor.routes import Routes, RouteState
from relay.supervisor.settings_source import SettingsSource
from relay.supervisor.upstreams.monitor import UpstreamMonitor
from relay.supervisor.worker_pool import WorkerPool
from relay.supervisor.worker_process import WorkerProcess

NANO = 1_000_000_000
ANY_SOURCE = "any"  # the kernel chooses the source address
OTHER_ADDRESSES = "other"
UNREADY_GRACE = 2.0  # seconds that a worker may be missing before the instance counts as not ready


@dataclass(slots=True)
class Health:
    """What a health path answers: 200 or 503, and the reason; with 200, the reason is a warning."""

    ok: bool
    reason: str = ""


class Status:
    """Reads the instance, its table, the worker pool, the upstream monitor, the drainer and the routes' states.

    `http_ports` has host:port of the admin and health ports by name, `reloads` counts reloads by result. `evictions`
    gives the state of Azure's scheduled events where they are watched, `source` the report on where the settings come
    from; `log_dropped` counts the log lines that the supervisor itself has lost.
    """

    def __init__(
        self,
        instance: Instance,
        pool: WorkerPool,
        monitor: UpstreamMonitor,
        drainer: Drainer,
        routes: Routes,
        *,
        http_ports: Mapping[str, str],
        reloads: Mapping[str, int],
        evictions: Callable[[], dict[str, Any]] | None,
        source: SettingsSource,
        log_dropped: Callable[[], int],
    ) -> None:
        self.drainer = drainer
        self.http_ports = http_ports
        self.reloads = reloads
        self._evictions = evictions
        self._source = source
        self._instance = instance
        self._pool = pool
        self._monitor = monitor
        self._routes = routes
        self._log_dropped = log_dropped
        self._started = time.monotonic()
        self._was_ready = False

    @property
    def draining(self) -> bool:
        return self.drainer.state.draining

    def totals(self) -> list[int]:
        """The counters of all workers added up, those of dead workers included.

        Only the cells before the gauges are there, and a gauge among them has no meaning as a sum.
        """
        return self._added(self._pool.snapshot())

    def _added(self, rows: Sequence[Row]) -> list[int]:
        totals = counters.totals(self._instance.layout, self._instance.used, [self._pool.retired, *rows])
        totals[counters.LOG_DROPPED] += self._log_dropped()
        return totals

    def live(self) -> Health:
        """/livez: whether every worker's event loop answers."""
        now = time.monotonic()
        hung = [str(worker.index) for worker in self._pool.workers if self._pool.hung(worker, now)]
        return Health(not hung, f"worker {', '.join(hung)}: loop does not answer" if hung else "")

    def ready(self) -> Health:
        """/readyz: whether the load balancer should send new connections here."""
        if self.draining:
            return Health(False, "draining")
        now = time.monotonic()
        looping = [str(worker.index) for worker in self._pool.workers if worker.crash_looping(now)]
        if looping:
            return Health(False, f"worker {', '.join(looping)}: crash-looping")
        missing = [worker for worker in self._pool.workers if not worker.ready]
        if not missing:
            if not self._was_ready and self._monitor.unresolved():
                return Health(False, "starting")
            self._was_ready = True
            return self._served()
        if not self._was_ready:
            return Health(False, "starting")
        gone = [str(worker.index) for worker in missing if now - worker.unready_since > UNREADY_GRACE]
        if gone or len(missing) == len(self._pool.workers):
            return Health(False, f"worker {', '.join(gone) or 'processes'}: not running")
        return Health(True)

    def _served(self) -> Health:
        """Whether connections have an upstream that is up. They are dialled in any case.

        Ready while one listener or route has one: the load balancer would take away the others' traffic as well.
        """
        without: list[str] = []
        on_backup: list[str] = []
        served = False
        for bound in self._instance.listeners:
            states = [(f"{bound.name}.{route.name}", route, self._routes.state(route)) for route in bound.routes]
            own_up = any(self._monitor.state(number).up for number, _, _ in bound.upstreams)
            served = served or own_up or any(state in (RouteState.UP, RouteState.BACKUP) for _, _, state in states)
            if not own_up and (bound.upstreams or all(state is RouteState.OFF for _, _, state in states)):
                without.append(self._unserved(bound.name, bound.upstreams))
            without += [self._unserved(name, route.upstreams) for name, route, s in states if s is RouteState.DOWN]
            on_backup += [name for name, _, state in states if state is RouteState.BACKUP]
        reasons = [f"no upstream: {', '.join(without)}"] if without else []
        reasons += [f"on backup: {', '.join(on_backup)}"] if on_backup else []
        return Health(served, "; ".join(reasons))

    def _unserved(self, name: str, upstreams: Destinations) -> str:
        """The name of a listener or route, and in brackets its addresses that are never dialled, with the reasons."""
        barred: dict[str, str] = {}
        for number, _, _ in upstreams:
            barred |= self._monitor.state(number).barred
        reasons = ", ".join(f"{address} is {why}" for address, why in barred.items())
        return f"{name} ({reasons})" if reasons else name

    def state(self) -> str:
        """starting, ready, unready or draining."""
        ready = self.ready()
        if ready.ok:
            return "ready"
        return ready.reason if ready.reason in ("draining", "starting") else "unready"

    def snapshot(self) -> RelayStatus:
        """The answer of /status."""
        instance, rows = self._instance, self._pool.snapshot()  # once: it reads all workers' cells
        totals = self._added(rows)
        ready = self.ready()
        listeners = [self._listener(name, number, totals) for name, number in instance.numbers.listeners.items()]
        hidden = self._routes.hidden_upstreams(ever=False)
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
            # A listener that a reload has removed is shown while it has connections.
            "listeners": [listener for listener in listeners if listener["name"] in current or listener["active"]],
            "upstreams": [
                self._upstream(number, instance.upstreams[number])
                for number in instance.current_upstreams
                if number not in hidden
            ],
            "dial_queue": self.queued(),
            "workers": [self._worker(worker, rows[worker.index], now) for worker in self._pool.workers],
            "scheduled_events": self.scheduled_events(),
            "http_ports": dict(self.http_ports),
            "reloads": dict(self.reloads),
            "settings_hash": self._instance.settings_hash,
            "settings_source": self.settings_source(),
            "start_only": {name: setting(instance.settings, name) for name in FIXED},
            "accept_pauses": totals[counters.ACCEPT_PAUSES],
            "log_lines_dropped": totals[counters.LOG_DROPPED],
        }

    def drain_state(self) -> DrainStatus | None:
        """The drain under way; None while there is none."""
        state = self.drainer.state
        if not state.draining:
            return None
        return {
            "phase": state.phase.value,
            "reason": state.reason,
            "ends": state.ends,
            "seconds_left": round(state.left(time.monotonic()), 3),
        }

    def scheduled_events(self) -> ScheduledEventsStatus | None:
        """What Azure's metadata service says; None where it is not asked."""
        return cast(ScheduledEventsStatus, self._evictions()) if self._evictions is not None else None

    def settings_source(self) -> SettingsSourceStatus | None:
        """What `relay fetch-settings` says about where the settings come from; None where it has said nothing."""
        report = self._source.report
        if report is None:
            return None
        error = self._source.error()
        return {
            "up": not error,
            "error": error,
            "held_back": report.held_back,
            "checked_at": report.checked_at,
            "hash": report.hash,
        }

    def _listener(self, name: str, number: int, totals: list[int]) -> ListenerStatus:
        instance, start = self._instance, self._instance.layout.listener(number)
        bound = next((bound for bound in instance.listeners if bound.number == number), None)
        return {
            "name": name,
            "bind": bound.addresses if bound is not None else [],
            "upstream": [instance.upstreams[index] for index, _, _ in bound.upstreams] if bound is not None else [],
            "active": counters.unfinished(instance.layout, totals, number),
            "accepted": totals[start + counters.ACCEPTED],
            "max_connections": bound.max_connections if bound is not None else 0,
            "bytes_up": totals[start + counters.BYTES_UP],
            "bytes_down": totals[start + counters.BYTES_DOWN],
            "outcomes": {o.label: n for o in OUTCOMES if (n := totals[start + OUTCOME + o.index])},
            "routes": self._routes_of(name, bound, totals),
        }

    def _routes_of(self, listener: str, bound: BoundListener | None, totals: list[int]) -> list[RouteStatus]:
        """The routes of a listener in their order, then removed ones that have connections."""
        instance = self._instance
        specs = {route.number: route for route in bound.routes} if bound is not None else {}
        numbers = {n: name for (of, name), n in instance.numbers.routes.items() if of == listener}
        found: list[RouteStatus] = []
        for number in dict.fromkeys([*specs, *numbers]):
            spec, start = specs.get(number), instance.layout.route(number)
            active = counters.on_route(instance.layout, totals, number)
            if spec is None and not active:
                continue
            found.append(
                {
                    "name": numbers[number],
                    "sni": list(spec.sni) if spec is not None else [],
                    "upstream": [instance.upstreams[n] for n, _, _ in spec.upstreams] if spec is not None else [],
                    "backup": [instance.upstreams[n] for n, _, _ in spec.backup] if spec is not None else [],
                    "state": self._routes.state(spec).value if spec is not None else "removed",
                    "active": active,
                    "accepted": totals[start + counters.ROUTED],
                    "bytes_up": totals[start + counters.ROUTE_BYTES_UP],
                    "bytes_down": totals[start + counters.ROUTE_BYTES_DOWN],
                    "outcomes": {
                        o.label: n for o in OUTCOMES if (n := totals[start + counters.ROUTE_OUTCOME + o.index])
                    },
                }
            )
        return found

    def queued(self) -> int:
        """Connections in the dial queues."""
        return sum(block[counters.QUEUED] for block in self._instance.table.blocks)

    def failed_dials(self) -> dict[tuple[int, str], list[int]]:
        """Failed dials for clients' connections by upstream number and address: a count for each of `DIAL_FAILURES`.

        Every address that is dialled now is listed, with zeros if no dial to it failed. OTHER_ADDRESSES sums up the
        addresses of an upstream that has too many to be counted apart.
        """
        instance = self._instance
        # Only numbers in use: a compromised worker may have written to the spare ones.
        numbers = range(len(instance.upstreams))
        counts: failed_dials.Counts = {
            key: list(values) for key, values in self._pool.retired_dials.items() if key[0] in numbers
        }
        for seen in self._pool.snapshot():
            for number in numbers:
                for key, more in failed_dials.counted(seen, instance.layout.failed(number)):
                    failed_dials.add(counts, number, key, more)
        hidden = self._routes.hidden_upstreams(ever=False)
        found = {
            (number, address): [0] * failed_dials.KINDS
            for number in instance.current_upstreams
            if number not in hidden
            for address, _ in self._monitor.state(number).addresses
        }
        for (number, key), values in counts.items():
            address = failed_dials.address(key)
            shown = format_hostport(*address) if address is not None else OTHER_ADDRESSES
            # Added up: a compromised worker may write another key for the same address.
            sums = found.setdefault((number, shown), [0] * failed_dials.KINDS)
            for kind, count in enumerate(values):
                sums[kind] += count
        return found

    def ports(self) -> list[tuple[str, int, int, int]]:
        """(source, upstream number, local ports in use, limit) for each pair of source address and upstream.

        The limit is the source's ports times the upstream's addresses. The kernel's choice (ANY_SOURCE) is left out
        where source addresses are configured and none of its ports are in use.
        """
        instance = self._instance
        names = [*instance.settings.dial.source_addresses, ANY_SOURCE]
        found = []
        hidden = self._routes.hidden_upstreams(ever=False)
        for number in instance.current_upstreams:
            if number in hidden:
                continue
            state = self._monitor.state(number)
            addresses = max(1, len(state.addresses) - len(state.barred))
            for source, name in enumerate(names):
                used = sum(block[instance.layout.ports(number, source)] for block in instance.table.blocks)
                if used or name is not ANY_SOURCE or len(names) == 1:
                    found.append((name, number, used, instance.source_ports * addresses))
        return found

    def _upstream(self, number: int, name: str) -> UpstreamStatus:
        state = self._monitor.state(number)
        return {
            "name": name,
            "up": state.up,
            "addresses": [
                {
                    "address": address,
                    "up": up,
                    "reason": state.barred.get(address) or state.failures.get(address, ""),
                }
                for address, up in state.addresses
            ],
            "error": state.error,
            "answer_age_seconds": None if state.answer_age is None else round(state.answer_age, 3),
            "certificate_expiry": state.certificate_expiry,
        }

    def _worker(self, worker: WorkerProcess, block: Row, now: float) -> WorkerStatus:
        instance = self._instance
        beat = block[counters.HEARTBEAT]
        return {
            "index": worker.index,
            "pid": worker.pid,
            "ready": worker.ready,
            "hung": self._pool.hung(worker, now),
            "heartbeat_age_seconds": round(max(0.0, now - beat / NANO), 3) if beat else None,
            "loop_lag_seconds": block[counters.LAG] / NANO,
            "active": sum(counters.unfinished(instance.layout, block, i) for i in range(instance.used.listeners)),
            "held_bytes": block[counters.HELD],
            "restarts": worker.restarts,
        }
