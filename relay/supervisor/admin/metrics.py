"""Prometheus collector over the shared table and the supervisor's state; docs/metrics.md explains each metric."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import relay
from relay.address import parse_hostport
from relay.core import counters
from relay.core.counters import CONNECT_BUCKETS, DURATION_BUCKETS, MICRO, OUTCOME
from relay.core.drain import Phase
from relay.outcome import DIAL_FAILURES, OUTCOMES
from relay.supervisor.admin.status import NANO, Status
from relay.supervisor.instance import Instance
from relay.supervisor.routes import Routes, RouteState
from relay.supervisor.upstreams.monitor import UpstreamMonitor
from relay.supervisor.worker_pool import WorkerPool


class RelayCollector(Collector):
    """Collects the metrics of the instance at each scrape."""

    def __init__(
        self, instance: Instance, pool: WorkerPool, status: Status, monitor: UpstreamMonitor, routes: Routes
    ) -> None:
        self._instance = instance
        self._monitor = monitor
        self._pool = pool
        self._status = status
        self._routes = routes

    def collect(self) -> Iterable[Metric]:
        totals = self._status.totals()
        yield from self._listeners(totals)
        yield from self._of_routes(totals)
        yield from self._upstreams(totals)
        yield from self._workers(totals)
        info = InfoMetricFamily("relay_build", "What runs here.")
        info.add_metric([], {"version": relay.__version__, "engine": self._instance.engine})
        yield info
        engine = InfoMetricFamily("relay_engine", "Which engine moves the bytes, and why that one.")
        engine.add_metric([], {"engine": self._instance.engine, "reason": self._instance.engine_word})
        yield engine
        settings = InfoMetricFamily("relay_settings", "Which settings are in force: equal ones have equal hashes.")
        settings.add_metric([], {"hash": self._instance.settings_hash})
        yield settings
        source = self._status.settings_source()
        if source is not None:
            yield GaugeMetricFamily(
                "relay_settings_source_up",
                "1 while this machine gets its fleet's settings, else 0.",
                value=float(source["up"]),
            )
        draining = float(self._status.draining)
        yield GaugeMetricFamily("relay_draining", "1 while the relay drains, else 0.", value=draining)
        reloads = CounterMetricFamily("relay_reloads", "Reloads of the settings, by result.", labels=["result"])
        for result, count in self._status.reloads.items():
            reloads.add_metric([result], count)
        yield reloads
        events = self._status.scheduled_events()
        if events is not None:
            yield GaugeMetricFamily(
                "relay_scheduled_events_up",
                "1 while Azure's metadata service answers, else 0.",
                value=float(events["ok"] or 0),
            )
            yield GaugeMetricFamily(
                "relay_scheduled_events", "Events announced for this machine.", value=len(events["events"])
            )
        drain = self._status.drainer.state
        phases = GaugeMetricFamily(
            "relay_drain_phase", "1 for the phase that the instance is in, 0 for the others.", labels=["phase"]
        )
        for phase in Phase:
            phases.add_metric([phase.value], float(phase is drain.phase))
        yield phases
        yield GaugeMetricFamily(
            "relay_drain_seconds_left",
            "Seconds until the last connection has been told to close; 0 while there is no drain.",
            value=drain.left(time.monotonic()),
        )
        yield from self._limits()

    def _limits(self) -> Iterable[Metric]:
        """The limits; those that are off are left out."""
        instance = self._instance
        yield GaugeMetricFamily(
            "relay_connections_limit",
            "Connections that this instance takes at most.",
            value=instance.limits.instance,
        )
        own = GaugeMetricFamily(
            "relay_listener_connections_limit", "Connections that the listener takes at most.", labels=["listener"]
        )
        for bound in instance.listeners:
            if bound.max_connections:
                own.add_metric([bound.name], bound.max_connections)
        yield own
        if instance.settings.dial.rate:
            yield GaugeMetricFamily(
                "relay_dial_queue_limit",
                "Connections that may wait for dial.rate.",
                value=instance.settings.dial.queue,
            )
        for kind, used, most in (
            ("listener", len(instance.numbers.listeners), instance.layout.listeners),
            ("upstream", len(instance.numbers.upstreams), instance.layout.upstreams),
            ("route", len(instance.numbers.routes), instance.layout.routes),
        ):
            yield GaugeMetricFamily(
                f"relay_{kind}_slots_in_use", f"Places for {kind}s that are taken, by former ones too.", value=used
            )
            yield GaugeMetricFamily(
                f"relay_{kind}_slots_limit", f"How many {kind}s there may be until a restart.", value=most
            )

    def _listeners(self, totals: Sequence[int]) -> Iterable[Metric]:
        layout = self._instance.layout
        active = GaugeMetricFamily("relay_connections_active", "Connections that have not ended.", labels=["listener"])
        accepted = CounterMetricFamily("relay_connections_accepted", "Connections accepted.", labels=["listener"])
        ended = CounterMetricFamily(
            "relay_connections", "Connections that ended, by outcome.", labels=["listener", "outcome"]
        )
        moved = CounterMetricFamily(
            "relay_bytes", "Bytes received: up from clients, down from upstreams.", labels=["listener", "direction"]
        )
        lasted = HistogramMetricFamily(
            "relay_connection_seconds", "How long ended connections lasted.", labels=["listener"]
        )
        # Removed listeners too: counters must not vanish.
        for name, index in self._instance.numbers.listeners.items():
            start = layout.listener(index)
            active.add_metric([name], counters.unfinished(layout, totals, index))
            accepted.add_metric([name], totals[start + counters.ACCEPTED])
            for outcome in OUTCOMES:
                ended.add_metric([name, outcome.label], totals[start + OUTCOME + outcome.index])
            moved.add_metric([name, "up"], totals[start + counters.BYTES_UP])
            moved.add_metric([name, "down"], totals[start + counters.BYTES_DOWN])
            cells = totals[layout.durations(index) :][: len(DURATION_BUCKETS) + 1]
            lasted.add_metric(
                [name], _histogram(DURATION_BUCKETS, cells), totals[start + counters.DURATION_SUM] / MICRO
            )
        yield from (active, accepted, ended, moved, lasted)

    def _of_routes(self, totals: Sequence[int]) -> Iterable[Metric]:
        """The metrics of routes. One that has always been off has none; outcomes are shown once they have occurred."""
        layout, labels = self._instance.layout, ["listener", "route"]
        active = GaugeMetricFamily(
            "relay_route_connections_active", "Connections of the route that have not ended.", labels=labels
        )
        taken = CounterMetricFamily("relay_route_connections_routed", "Connections that took the route.", labels=labels)
        ended = CounterMetricFamily(
            "relay_route_connections", "Connections of the route that ended, by outcome.", labels=[*labels, "outcome"]
        )
        moved = CounterMetricFamily(
            "relay_route_bytes", "Bytes received: up from clients, down from upstreams.", labels=[*labels, "direction"]
        )
        hidden = self._routes.hidden_routes()
        for names, index in self._instance.numbers.routes.items():  # removed ones too: counters must not vanish
            if index in hidden:
                continue
            start = layout.route(index)
            active.add_metric(names, counters.on_route(layout, totals, index))
            taken.add_metric(names, totals[start + counters.ROUTED])
            for outcome in OUTCOMES:
                if count := totals[start + counters.ROUTE_OUTCOME + outcome.index]:
                    ended.add_metric([*names, outcome.label], count)
            moved.add_metric([*names, "up"], totals[start + counters.ROUTE_BYTES_UP])
            moved.add_metric([*names, "down"], totals[start + counters.ROUTE_BYTES_DOWN])
        yield from (active, taken, ended, moved)
        up = GaugeMetricFamily(
            "relay_route_up", "1 while an upstream of the route is up, or its backup is, else 0.", labels=labels
        )
        backup = GaugeMetricFamily(
            "relay_route_backup", "1 while connections of the route go to its backup, else 0.", labels=labels
        )
        for bound in self._instance.listeners:
            for route in bound.routes:
                state = self._routes.state(route)
                if state is RouteState.OFF or route.number in hidden:
                    continue
                up.add_metric([bound.name, route.name], float(state in (RouteState.UP, RouteState.BACKUP)))
                if route.backup:
                    backup.add_metric([bound.name, route.name], float(state is RouteState.BACKUP))
        yield from (up, backup)

    def _upstreams(self, totals: Sequence[int]) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "relay_connect_seconds", "Time to connect to an upstream, successful dials only.", labels=["upstream"]
        )
        never = self._routes.hidden_upstreams(ever=True)
        off = self._routes.hidden_upstreams(ever=False)
        for index, name in enumerate(self._instance.upstreams):
            if index in never:
                continue
            start = self._instance.layout.upstream(index)
            cells = totals[start + 1 :][: len(CONNECT_BUCKETS) + 1]
            family.add_metric([name], _histogram(CONNECT_BUCKETS, cells), totals[start] / NANO)
        yield family
        failed = CounterMetricFamily(
            "relay_dials_failed",
            "Attempts to connect that failed, by address; a connection may make several.",
            labels=["upstream", "address", "outcome"],
        )
        for (index, address), counts in self._status.failed_dials().items():
            for outcome, count in zip(DIAL_FAILURES, counts, strict=True):
                failed.add_metric([self._instance.upstreams[index], address, outcome.label], count)
        yield failed
        up = GaugeMetricFamily(
            "relay_upstream_up", "1 while an address of the upstream can be connected to, else 0.", labels=["upstream"]
        )
        address_up = GaugeMetricFamily(
            "relay_upstream_address_up", "The same for each of its addresses.", labels=["upstream", "address"]
        )
        expiry = GaugeMetricFamily(
            "relay_upstream_certificate_expiry_seconds",
            "When the upstream's certificate expires, in seconds since the epoch.",
            labels=["upstream"],
        )
        for index in self._instance.current_upstreams:
            if index in off:
                continue
            name, state = self._instance.upstreams[index], self._monitor.state(index)
            up.add_metric([name], float(state.up))
            for address, is_up in state.addresses:
                address_up.add_metric([name, address], float(is_up))
            if state.certificate_expiry is not None:
                expiry.add_metric([name], state.certificate_expiry)
        yield from (up, address_up, expiry)
        age = GaugeMetricFamily(
            "relay_dns_answer_age_seconds", "Seconds since the last good answer for the name.", labels=["name"]
        )
        shown = {
            parse_hostport(self._instance.upstreams[index], allow_name=True)[0]
            for index in self._instance.current_upstreams
            if index not in off
        }
        for name, seconds in self._monitor.ages().items():
            if name not in shown:
                continue
            age.add_metric([name], seconds)
        yield age
        yield GaugeMetricFamily(
            "relay_dial_queue", "Connections that wait for dial.rate or a route's rate.", value=self._status.queued()
        )
        in_use = GaugeMetricFamily(
            "relay_source_ports_in_use", "Local ports in use towards the upstream.", labels=["source", "upstream"]
        )
        limit = GaugeMetricFamily(
            "relay_source_ports_limit", "How many may be in use at once.", labels=["source", "upstream"]
        )
        for source, index, used, most in self._status.ports():
            in_use.add_metric([source, self._instance.upstreams[index]], used)
            limit.add_metric([source, self._instance.upstreams[index]], most)
        yield from (in_use, limit)

    def _workers(self, totals: Sequence[int]) -> Iterable[Metric]:
        ready = sum(worker.ready for worker in self._pool.workers)
        yield GaugeMetricFamily("relay_workers", "Workers that accept connections.", value=ready)
        yield CounterMetricFamily(
            "relay_worker_restarts",
            "Workers started in place of one that died.",
            value=sum(worker.restarts for worker in self._pool.workers),
        )
        lag = GaugeMetricFamily("relay_loop_lag_seconds", "How late the worker's last tick was.", labels=["worker"])
        held = GaugeMetricFamily(
            "relay_held_bytes", "Bytes received and not yet taken by the other side.", labels=["worker"]
        )
        for index, block in enumerate(self._instance.table.blocks):
            lag.add_metric([str(index)], block[counters.LAG] / NANO)
            held.add_metric([str(index)], block[counters.HELD])
        yield from (lag, held)
        yield CounterMetricFamily(
            "relay_accept_pauses",
            "Times that accepting was paused because descriptors or memory ran out.",
            value=totals[counters.ACCEPT_PAUSES],
        )
        yield CounterMetricFamily(
            "relay_log_lines_dropped",
            "Log lines lost because nobody took them.",
            value=totals[counters.LOG_DROPPED],
        )


def _histogram(bounds: Sequence[float], cells: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative buckets, as Prometheus defines them."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], cells, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
