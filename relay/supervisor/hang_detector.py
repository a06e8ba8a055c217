"""Detects workers whose event loop hangs, by a heartbeat that only the loop itself writes, and has them replaced."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.core import counters
from relay.supervisor.instance import Instance
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.worker_process import WorkerProcess

HANG = 3.0  # seconds without a heartbeat after which a worker's loop counts as hung
START_GRACE = 20.0  # seconds that a worker may take until it accepts
CHECK = 1.0  # seconds between two checks
LATE = 2.0  # if a check runs this many seconds after the last one, the machine was paused: the interval is ignored
ABORT_GRACE = 1.0  # seconds from SIGABRT, on which a worker writes its stack, to SIGKILL
NANO = 1_000_000_000


@dataclass(slots=True)
class _Heartbeat:
    """The last heartbeat of one worker."""

    value: int = 0  # as the worker wrote it, in monotonic nanoseconds
    seen_at: float = 0.0  # when this process first read that value
    silent: float = 0.0  # seconds of checks at which the worker hung; negative after SIGABRT, until it has ended


class HangDetector:
    """Checks the workers of a pool. `kill` ends a worker by force; its second argument is the reason."""

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
        self._heartbeats = [_Heartbeat() for _ in workers]

    def hung(self, worker: WorkerProcess, now: float) -> bool:
        """Whether the worker's event loop has been silent for HANG seconds; False while no process runs.

        A heartbeat counts as no newer than its first sighting, whatever time the worker has written.
        """
        if worker.process is None:
            return False
        value = self._instance.table.blocks[worker.index][counters.HEARTBEAT]
        if not value or not worker.ready:
            return now - worker.started > START_GRACE
        last = self._heartbeats[worker.index]
        if value != last.value:
            last.value, last.seen_at = value, now
        return now - min(value / NANO, last.seen_at) > HANG

    async def watch(self) -> None:
        """Replace workers whose loop is silent for `supervision.hang_timeout` seconds; runs until cancelled.

        Only time in which this loop itself ran counts: a host may pause the whole virtual machine.
        """
        before = time.monotonic()
        while True:
            await asyncio.sleep(CHECK)
            now, timeout = time.monotonic(), self._instance.settings.supervision.hang_timeout
            for worker, last in zip(self._workers, self._heartbeats, strict=True):
                if not timeout or not self.hung(worker, now):
                    last.silent = 0.0
                elif now - before <= LATE:
                    last.silent += now - before
                    if last.silent + HANG >= timeout:
                        last.silent = -timeout  # time for it to end
                        self._replace(worker)
            before = now

    def _replace(self, worker: WorkerProcess) -> None:
        process = worker.process
        assert process is not None
        self._log.error("worker hangs", worker=worker.index, pid=worker.pid)
        process.send_signal(signal.SIGABRT)  # the worker writes its stack to standard error, if it can

        def kill() -> None:
            if worker.process is process:
                self._kill(worker, "its loop did not answer")

        asyncio.get_running_loop().call_later(ABORT_GRACE, kill)
