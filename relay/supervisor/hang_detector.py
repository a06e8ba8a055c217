"""Workers that hang: found by their heartbeat, which only their own loop writes, then killed and so replaced."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence

from relay.core import counters
from relay.supervisor.instance import Instance
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.worker_process import WorkerProcess

HANG = 3.0  # seconds without a heartbeat after which a worker's loop counts as hung
START_GRACE = 20.0  # seconds that a worker may take until it accepts
CHECK = 1.0  # seconds between two looks
LATE = 2.0  # seconds that such a look may be late before it says nothing: the machine itself stood still
ABORT_GRACE = 1.0  # seconds that a worker which hangs gets to say where
NANO = 1_000_000_000


class HangDetector:
    """Watches the workers of a pool. `kill` ends one by force and gets the reason."""

    def __init__(
        self,
        instance: Instance,
        workers: Sequence[WorkerProcess],
        kill: Callable[[WorkerProcess, str], None],
        log: ServiceLog,
    ) -> None:
        self._instance = instance
        self._workers = workers
        self._kill = kill
        self._log = log

    def hung(self, worker: WorkerProcess, now: float) -> bool:
        """Whether the worker's own loop has been silent for too long. A worker that is being replaced is not hung.

        A heartbeat cannot be younger than the look that saw it first, whatever time the worker has written.
        """
        if worker.process is None:
            return False
        beat = self._instance.table.blocks[worker.index][counters.HEARTBEAT]
        if not beat or not worker.ready:
            return now - worker.started > START_GRACE
        if beat != worker.beat:
            worker.beat, worker.beat_seen = beat, now
        return now - min(beat / NANO, worker.beat_seen) > HANG

    async def watch(self) -> None:
        """Replace workers whose loop is silent for `supervision.hang_timeout`, until cancelled.

        What counts is the time in which this loop could look, and not that in which the whole machine stood still, as a
        virtual machine does that is paused by its host.
        """
        before = time.monotonic()
        while True:
            await asyncio.sleep(CHECK)
            now, timeout = time.monotonic(), self._instance.settings.supervision.hang_timeout
            for worker in self._workers:
                if not timeout or not self.hung(worker, now):
                    worker.silent = 0.0
                elif now - before <= LATE:
                    worker.silent += now - before
                    if worker.silent + HANG >= timeout:
                        worker.silent = -timeout  # time for it to end
                        self._replace(worker)
            before = now

    def _replace(self, worker: WorkerProcess) -> None:
        process = worker.process
        assert process is not None
        self._log.error("worker hangs", worker=worker.index, pid=worker.pid)
        process.send_signal(signal.SIGABRT)  # it writes where it stands to standard error, if it can

        def kill() -> None:
            if worker.process is process:
                self._kill(worker, "its loop did not answer")

        asyncio.get_running_loop().call_later(ABORT_GRACE, kill)
