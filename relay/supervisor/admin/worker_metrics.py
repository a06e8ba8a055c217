"""Prometheus collector for the resources of each worker and their limits, with a label `worker`.

Each scrape reads /proc (proc(5)), since a hung worker cannot report, and the shared table. It opens one file and calls
stat(2) on one folder per worker, so its cost does not grow with the connections. The supervisor's own numbers are
prometheus_client's `process_*`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.core import counters
from relay.supervisor.instance import Instance
from relay.supervisor.worker_pool import WorkerPool

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat by their numbers in proc(5); `usage` splits from field 3 on.
UTIME, STIME, RSS = 14 - 3, 15 - 3, 24 - 3


class Usage(NamedTuple):
    """Resources of a process. `descriptors` is 0 where reading the number means listing them (Linux before 6.2)."""

    cpu_seconds: float
    resident_bytes: int
    descriptors: int


def usage(pid: int) -> Usage | None:
    """The resources of a process; None if it has ended or cannot be read."""
    try:
        # The process name, in parentheses, may contain spaces and parentheses.
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        # st_size is the number of open descriptors since Linux 6.2 (f1f1f2569901, "proc: report open files as size in
        # stat() for /proc/pid/fd"). Listing the folder takes 3 µs for each, most of a second for 200,000.
        descriptors = (PROC / str(pid) / "fd").stat().st_size
    except OSError:
        return None
    return Usage((int(fields[UTIME]) + int(fields[STIME])) / TICKS, int(fields[RSS]) * PAGE, descriptors)


class _Cpu:
    """Processor time of one worker and its predecessors, which never decreases."""

    def __init__(self) -> None:
        self._pid = 0
        self._before = 0.0  # seconds of the predecessors, each as of the last scrape in its life
        self._last = 0.0

    def total(self, pid: int | None, seconds: float) -> float:
        """Total seconds, where process `pid` has used `seconds`; `pid` None: no process runs now."""
        if pid is not None:
            if pid != self._pid:
                self._before += self._last
                self._pid, self._last = pid, 0.0
            self._last = max(self._last, seconds)
        return self._before + self._last


class WorkerCollector(Collector):
    """Collects the resources of all workers at each scrape."""

    def __init__(self, instance: Instance, pool: WorkerPool) -> None:
        self._instance = instance
        self._pool = pool
        self._cpu = [_Cpu() for _ in pool.workers]

    def collect(self) -> Iterable[Metric]:
        instance, labels = self._instance, ["worker"]
        cpu = CounterMetricFamily(
            "relay_worker_cpu_seconds", "Processor time of the worker and its predecessors.", labels=labels
        )
        resident = GaugeMetricFamily("relay_worker_resident_memory_bytes", "Resident memory.", labels=labels)
        in_use = GaugeMetricFamily("relay_worker_descriptors_in_use", "Open file descriptors.", labels=labels)
        most = GaugeMetricFamily("relay_worker_descriptors_limit", "How many may be open.", labels=labels)
        active = GaugeMetricFamily("relay_worker_connections_active", "Connections that have not ended.", labels=labels)
        limit = GaugeMetricFamily(
            "relay_worker_connections_limit", "Connections that the worker's descriptors carry.", labels=labels
        )
        held = GaugeMetricFamily("relay_held_bytes_limit", "How much of relay_held_bytes there may be.", labels=labels)
        rows = self._pool.snapshot()
        for worker in self._pool.workers:
            name, block = [str(worker.index)], rows[worker.index]
            used = usage(worker.pid) if worker.pid is not None else None
            cpu.add_metric(name, self._cpu[worker.index].total(worker.pid, used.cpu_seconds if used else 0.0))
            if used is not None:
                resident.add_metric(name, used.resident_bytes)
                if used.descriptors:
                    in_use.add_metric(name, used.descriptors)
            most.add_metric(name, instance.descriptors)
            numbers = range(instance.used.listeners)
            active.add_metric(name, sum(counters.unfinished(instance.layout, block, number) for number in numbers))
            limit.add_metric(name, instance.limits.capacity)
            if instance.settings.limits.held_bytes:
                held.add_metric(name, instance.settings.limits.held_bytes)
        yield from (cpu, resident, in_use, most, active, limit, held)
