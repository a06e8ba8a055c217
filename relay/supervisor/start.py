"""Starts the supervisor from the settings; every mistake is found before any process or thread is started."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence

from relay import process
from relay.log_writer import LogWriter
from relay.settings.model import Settings
from relay.supervisor import service_log
from relay.supervisor.preflight import preflight
from relay.supervisor.supervisor import Supervisor
from relay.supervisor.systemd.notify import Notifier
from relay.supervisor.systemd.socket_activation import listen_fds

LOG_FLUSH = 2.0  # seconds that the end waits until the log's lines have been written out
STDOUT = 1


def missing_notes(missing: Sequence[str]) -> list[str]:
    """Warnings about standard descriptors that were closed at the start."""
    notes = []
    if process.STANDARD[2] in missing:
        notes.append("standard error was closed at the start: what Python writes when a worker crashes is lost")
    if process.STANDARD[STDOUT] in missing:
        notes.append("standard output was closed at the start: all lines of the log are lost")
    return notes


def run(load: Callable[[Settings | None], Settings], missing: Sequence[str] = ()) -> int:
    """Run the relay until it is told to end; returns the exit status.

    `load` reads the settings; a reload passes it those in effect. `missing` are the standard descriptors that were
    closed. Signals are blocked (`process.begin`) until their handlers are installed. Raises SettingsError or StartError
    before anything has been started.
    """
    # First of all, so that no child inherits the variables.
    notifier, taken = Notifier(os.environ), listen_fds(os.environ)
    settings = load(None)
    instance, http = preflight(settings, taken, notifier.watchdog_seconds)
    instance.notes += missing_notes(missing)
    if settings.customers:
        process.return_memory()
    if process.STANDARD[STDOUT] in missing:  # the log goes nowhere
        sys.stderr.write(f"relay: {missing_notes(missing)[-1]}\n")
    writer = LogWriter(STDOUT)
    log = service_log.configure(writer, settings.log.format, settings.log.level)

    async def main() -> None:
        try:
            await Supervisor(instance, load, http, writer, log, notifier).run()
        finally:
            process.hold()  # the loop removes its handlers: one more SIGTERM must not change the exit status

    started = time.monotonic()
    try:
        # Not uvloop: its transports, which the workers do not use, have crashed the interpreter under load (0.23.0,
        # docs/performance.md), and anybody may reach this process's ports.
        asyncio.run(main())
    except Exception:
        log.exception("supervisor failed", uptime_seconds=round(time.monotonic() - started, 3))
        return 1
    finally:
        writer.flush(LOG_FLUSH)
    return 0
