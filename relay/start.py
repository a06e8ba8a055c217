"""From settings to a supervisor that runs: what can be wrong is found before anything is started."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from relay import servicelog
from relay.address import parse_hostport
from relay.cpus import usable_cpus
from relay.logs import LogWriter
from relay.machine import bind_error
from relay.plan import Plan, StartError, tcp_options
from relay.prepare import prepare, watchdog_notes
from relay.settings import Settings
from relay.supervisor import Supervisor
from relay.systemd.listening import Listening, bindings, match, take_listening
from relay.systemd.notify import Notifier

LOG_FLUSH = 2.0  # seconds that the end waits for whoever reads the log
STDOUT = 1


def bind_http(settings: Settings) -> dict[str, socket.socket]:
    """The admin and the health port's sockets, those that are on. Raises StartError."""
    sockets: dict[str, socket.socket] = {}
    problems = []
    for name, text in (("admin", settings.admin.bind), ("health", settings.health.bind)):
        if not text:
            continue
        host, port = parse_hostport(text, allow_name=False)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(128)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            problems.append(f"{name}.bind: {text}: {bind_error(error, port)}")
            continue
        sockets[name] = sock
    if problems:
        for sock in sockets.values():
            sock.close()
        raise StartError(problems)
    return sockets


def inherit(settings: Settings, taken: Listening) -> Plan:
    """The plan, with the service manager's sockets where it has handed over any. Raises StartError."""
    matched = match(taken.sockets, [(item.name, item.bind) for item in settings.listeners])
    if problems := taken.problems + matched.problems:
        raise StartError(problems)
    plan = prepare(settings, bindings(matched.served, settings.workers or usable_cpus(), tcp_options(settings)))
    plan.notes += matched.notes
    return plan


def run(load: Callable[[], Settings]) -> int:
    """Run the relay until it is told to end; the exit status.

    `load` reads the settings, now and for each reload. Raises SettingsError or StartError before anything was started.
    """
    # Before anything is started that would have the variables as well.
    notifier, taken = Notifier(os.environ), take_listening(os.environ)
    settings = load()
    problems: list[str] = []
    http: dict[str, socket.socket] = {}
    plan: Plan | None = None
    try:
        plan = inherit(settings, taken)
    except StartError as error:
        problems += error.problems
    try:
        http = bind_http(settings)
    except StartError as error:
        problems += error.problems
    if problems or plan is None:
        raise StartError(problems)
    plan.watchdog = notifier.watchdog_seconds
    plan.notes += watchdog_notes(settings, plan.watchdog)
    writer = LogWriter(STDOUT)
    log = servicelog.configure(writer, settings.log.format, settings.log.level)

    async def main() -> None:
        await Supervisor(plan, load, http, writer, log, notifier).run()

    started = time.monotonic()
    try:
        # Not uvloop, which the workers use without its transports: under load those have crashed the
        # interpreter (0.23.0, docs/performance.md), and this process has ports that strangers can reach.
        asyncio.run(main())
    except Exception:
        log.exception("supervisor failed", uptime_seconds=round(time.monotonic() - started, 3))
        return 1
    finally:
        writer.flush(LOG_FLUSH)
    return 0
