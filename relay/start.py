"""From settings to a supervisor that runs: what can be wrong is found before anything is started."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from relay import servicelog
from relay.logs import LogWriter
from relay.preflight import preflight
from relay.settings import Settings
from relay.supervisor import Supervisor
from relay.systemd.listening import take_listening
from relay.systemd.notify import Notifier

LOG_FLUSH = 2.0  # seconds that the end waits for whoever reads the log
STDOUT = 1


def run(load: Callable[[], Settings]) -> int:
    """Run the relay until it is told to end; the exit status.

    `load` reads the settings, now and for each reload. Raises SettingsError or StartError before anything was started.
    """
    # Before anything is started that would have the variables as well.
    notifier, taken = Notifier(os.environ), take_listening(os.environ)
    settings = load()
    plan, http = preflight(settings, taken, notifier.watchdog_seconds)
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
