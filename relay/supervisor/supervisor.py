"""The supervisor: the process that an operator starts and sees. It carries no client traffic.

It holds the listening sockets, starts, watches and replaces the workers, answers the admin and health ports, writes the
service log, and handles signals:

    SIGTERM, SIGUSR1  drain, then end: not ready for drain.announce, then no new connections, and established ones are
                      closed evenly over drain.window
    SIGTERM again     end now
    SIGINT            end now
    SIGHUP            reload: read the settings again, and put them into effect for new connections
    others            a line in the log (`process.IGNORED`)
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector

import relay
from relay import process
from relay.address import format_hostport, parse_hostport
from relay.core.drain import Order, Phase
from relay.ipc.messages import Message
from relay.log_writer import LogWriter
from relay.outcome import OUTCOMES
from relay.own_addresses import endpoint, is_own
from relay.settings.model import Settings
from relay.supervisor import service_log
from relay.supervisor.admin import customer_metrics, customer_status
from relay.supervisor.admin.http import Orders, admin_app, health_app
from relay.supervisor.admin.metrics import RelayCollector
from relay.supervisor.admin.server import ADMIN, HEALTH, HttpServer
from relay.supervisor.admin.status import Status
from relay.supervisor.admin.worker_metrics import WorkerCollector
from relay.supervisor.azure.eviction import Evictions
from relay.supervisor.drainer import Drainer
from relay.supervisor.instance import Instance, nameservers
from relay.supervisor.orphans import Reaper
from relay.supervisor.reload import Reloader
from relay.supervisor.routes import Routes
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.settings_source import SettingsSource
from relay.supervisor.systemd.notify import Notifier, Reporter, ServiceStatus
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.monitor import UpstreamMonitor
from relay.supervisor.worker_pool import WorkerPool

SETTLE = 0.02  # seconds from a change of state until the whole of it is looked at
END_GRACE = 5.0  # seconds from Stop until workers that still run are killed


class Supervisor:
    """One run of the relay."""

    def __init__(
        self,
        instance: Instance,
        load: Callable[[Settings | None], Settings],
        http: dict[str, socket.socket],
        writer: LogWriter,
        log: ServiceLog,
        notifier: Notifier,
    ) -> None:
        self._instance = instance
        self._notifier = notifier
        self._reporter = Reporter(notifier, self._service_status)
        self._http_sockets = http
        self._writer = writer
        self._log = log
        self._monitor = UpstreamMonitor(
            instance.settings,
            self._upstreams(),
            nameservers(instance.settings),
            self._tell,
            self._changed,
            log,
            self._is_own,
            self._optional_names(),
        )
        self._routes = Routes(instance, self._monitor.state, lambda: self._monitor.version, log)
        self._pool = WorkerPool(instance, log, self._changed, self._monitor.greeting, self._monitor.failing)
        self._drainer = Drainer(self._pool, self._pool.active, self._ended, self._drained, log)
        self._evictions: Evictions | None = None
        if instance.settings.azure.scheduled_events:
            url, drain = instance.settings.azure.metadata_url, instance.settings.drain
            longest = drain.announce + drain.window + END_GRACE
            self._evictions = Evictions(url, self._evict, self._drainer, longest, log)
        self._source = SettingsSource(instance.settings.azure.settings_state, log)
        self._reloader = Reloader(instance, load, self._apply, self._reload_refusal, log)
        self._status = Status(
            instance,
            self._pool,
            self._monitor,
            self._drainer,
            self._routes,
            http_ports={name: format_hostport(*sock.getsockname()[:2]) for name, sock in http.items()},
            reloads=self._reloader.results,
            evictions=self._evictions.snapshot if self._evictions is not None else None,
            source=self._source,
            log_dropped=lambda: writer.dropped,
        )
        self._hang_ups: set[asyncio.Task[list[str]]] = set()
        self._reaper = Reaper(self._own_processes)
        self._end = asyncio.Event()
        self._announced = False
        self._settling: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Run until a drain or a signal ends the process."""
        registry = CollectorRegistry()
        registry.register(RelayCollector(self._instance, self._pool, self._status, self._monitor, self._routes))
        registry.register(WorkerCollector(self._instance, self._pool))
        ProcessCollector(registry=registry)  # of this process
        servers = []
        if "admin" in self._http_sockets:
            orders = Orders(self.drain, self._undrain, self.reload)
            app = admin_app(
                self._status,
                registry,
                orders,
                lambda: self._instance.settings.admin.hosts,
                self._with_customers,
                self._whole_status,
            )
            servers.append(HttpServer(app, self._http_sockets["admin"], ADMIN, "admin"))
        if "health" in self._http_sockets:
            servers.append(HttpServer(health_app(self._status), self._http_sockets["health"], HEALTH, "health"))
        self._log_start()
        self._monitor.start()  # before the admin port serves: a reload restarts the monitor
        self._handle_signals()
        for server in servers:
            await server.start()
        reports = asyncio.create_task(keep_running("reports to the service manager", self._reporter.run, self._log))
        source = asyncio.create_task(keep_running("report on the settings' source", self._source.run, self._log))
        await self._pool.start()
        if self._evictions is not None:
            self._evictions.start()
        await self._end.wait()
        self._log.info("stopping", connections=self._pool.active())
        self._pool.stop()
        if not await self._pool.wait(END_GRACE):
            await self._pool.kill()
        if self._evictions is not None:
            await self._evictions.stop()
        await self._monitor.stop()  # before the last line of the log: it logs too
        self._log_end()
        for server in servers:
            await server.stop()
        reports.cancel()
        source.cancel()
        self._reaper.stop()

    def _handle_signals(self) -> None:
        """Install the handlers and unblock the signals; those that arrived since the program began are handled now."""
        loop = asyncio.get_running_loop()
        # Also where the parent ignores them (nohup, a shell's `&`): the table in docs/operations.md always applies.
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGUSR1, self._soft_stop)
        loop.add_signal_handler(signal.SIGINT, self._drainer.hurry)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        for number in process.IGNORED:
            loop.add_signal_handler(number, self._ignore, number)
        self._reaper.start()
        process.release()

    def drain(self, reason: str) -> None:
        """Drain for an operator, with the times of the settings."""
        self._begin_drain(reason)

    def _begin_drain(self, reason: str, *, ends: bool = False, left: float | None = None, lasts: bool = True) -> None:
        settings = self._instance.settings.drain
        self._drainer.begin(Order(settings.announce, settings.window, ends, reason, left, lasts))
        self._reporter.update()

    def _undrain(self) -> str:
        problem = self._drainer.undrain()
        if not problem and self._evictions is not None:
            self._evictions.taken_back()
        return problem

    def _evict(self, reason: str, left: float) -> None:
        self._begin_drain(reason, left=left, lasts=False)

    def _drained(self) -> None:
        if self._evictions is not None:
            self._evictions.drained()

    def _ended(self) -> None:
        self._end.set()

    def _tell(self, message: Message) -> None:
        self._pool.tell(message)

    def _terminate(self) -> None:
        if self._drainer.state.ends or self._drainer.state.phase is Phase.ENDED:
            self._drainer.hurry()
        else:
            self._begin_drain("SIGTERM", ends=True)

    def _soft_stop(self) -> None:
        """Drain and end, like the first SIGTERM; unlike a second SIGTERM it never cuts a drain short."""
        if not self._drainer.state.ends and self._drainer.state.phase is not Phase.ENDED:
            self._begin_drain("SIGUSR1", ends=True)

    def _own_processes(self) -> set[int] | None:
        if self._reloader.reading:  # a thread waits for a child process whose PID is unknown here
            return None
        return {worker.pid for worker in self._pool.workers if worker.pid is not None}

    def _ignore(self, number: int) -> None:
        self._log.warning("signal ignored", signal=process.signal_name(number))

    def _hang_up(self) -> None:
        task = asyncio.create_task(self.reload("SIGHUP"))
        self._hang_ups.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._hang_ups.discard)

    async def _with_customers(self, scrape: bytes) -> bytes:
        """A scrape with the customers' metrics, if `metrics.customers` is set."""
        if not self._instance.settings.metrics.customers:
            return scrape
        return await customer_metrics.with_customers(scrape, self._instance)

    async def _whole_status(self) -> str:
        """/status as JSON."""
        return await customer_status.with_customers(self._status.snapshot(), self._instance)

    async def reload(self, reason: str) -> list[str]:
        """Read the settings again and put them into effect; returns the problems that prevented it, if any."""
        self._notifier.reloading()
        try:
            return await self._reloader.reload(reason)
        finally:
            if not self._reloader.pending:
                self._notifier.reloaded()

    def _reload_refusal(self) -> str:
        return "draining: undrain first, or let it end" if self._drainer.state.draining else ""

    def _apply(self, addresses: list[str]) -> None:
        """Put a changed instance into effect; `addresses` are those with new listening sockets."""
        settings = self._instance.settings
        service_log.set_level(settings.log.level)
        self._monitor.configure(settings, self._upstreams(), nameservers(settings), self._optional_names())
        self._pool.apply(addresses)
        self._changed()

    def _is_own(self, host: str, port: int) -> bool:
        """Whether this relay itself listens there, with its admin and health ports as well."""
        return is_own(host, port, [*self._instance.endpoints(), *map(endpoint, self._http_sockets.values())])

    def _upstreams(self) -> dict[int, str]:
        return {number: self._instance.upstreams[number] for number in self._instance.current_upstreams}

    def _service_status(self) -> ServiceStatus:
        """The state that systemd acts on and `systemctl status` shows."""
        state, workers = self._drainer.state, self._pool.workers
        ready, active = sum(worker.ready for worker in workers), self._pool.active()
        text = f"{self._status.state()}: {active} connection{'s' if active != 1 else ''}, "
        text += f"{ready} of {len(workers)} workers"
        ends_in = state.left(time.monotonic()) if state.ends or self._end.is_set() else None
        # Not /readyz: a unit's start must not fail because an upstream is down.
        return ServiceStatus(ready == len(workers), self._status.live().ok, ends_in, text)

    def _optional_names(self) -> set[str]:
        """The hosts that only optional routes have."""
        optional = self._instance.optional_upstreams
        hosts = [parse_hostport(text, allow_name=True)[0] for text in self._instance.upstreams]
        needed = {hosts[number] for number in self._instance.current_upstreams if number not in optional}
        return {hosts[number] for number in optional} - needed

    def _changed(self) -> None:
        self._reporter.update()
        if self._settling is None:  # at once for the first of many changes would be once for each of them
            self._settling = asyncio.get_running_loop().call_later(SETTLE, self._settle)

    def _settle(self) -> None:
        """Look at the state as a whole, after changes."""
        self._settling = None
        self._routes.update()
        if not self._announced and self._status.ready().ok:
            self._announced = True
            self._log.info("ready", workers=self._instance.workers)

    def _log_start(self) -> None:
        instance = self._instance
        self._log.info(
            "starting",
            version=relay.__version__,
            pid=os.getpid(),
            engine=instance.engine,
            engine_reason=instance.engine_reason,
            workers=instance.workers,
            descriptors=instance.descriptors,
            max_connections=instance.limits.instance,
            max_connections_per_worker=instance.limits.capacity,
        )
        for bound in instance.listeners:
            upstream = [instance.upstreams[number] for number, _, _ in bound.upstreams]
            routes = {"routes": [route.name for route in bound.routes]} if bound.routes else {}
            self._log.info("listening", listener=bound.name, bind=bound.addresses, upstream=upstream, **routes)
        for name, address in self._status.http_ports.items():
            self._log.info("listening", listener=name, bind=[address])
        for note in instance.notes:
            self._log.warning(note)

    def _log_end(self) -> None:
        snapshot = self._status.snapshot()
        connections = snapshot["connections"]
        outcomes = {outcome.label: connections["outcomes"][outcome.label] for outcome in OUTCOMES}
        self._log.info(
            "stopped",
            accepted=connections["accepted"],
            outcomes={label: count for label, count in outcomes.items() if count},
            bytes_up=snapshot["bytes"]["up"],
            bytes_down=snapshot["bytes"]["down"],
            uptime_seconds=snapshot["uptime_seconds"],
            log_lines_dropped=snapshot["log_lines_dropped"],
        )
