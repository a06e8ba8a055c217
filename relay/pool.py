"""The worker processes: start, watch, replace, stop.

A worker that ends without having been told to is replaced at once the first time, then after growing pauses
(`backoff`), so that a crash loop neither spins nor gives up. Its listening sockets stay open here, so connections in
their queues wait for its successor. What it held is given back, what it counted is kept, and the connections that it
carried are accounted as lost with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import relay
from relay import control
from relay.control import Channel, ChannelFull, Drain, Failing, Log, Message, Ready, Start, Stop
from relay.core import counters
from relay.core.limit_table import clear_column
from relay.outcome import Outcome
from relay.prepare import Plan

STEADY = 10.0  # seconds that a worker must have lived for its end not to count as part of a crash loop
BACKOFF_LIMIT = 30.0  # seconds
HANG = 3.0  # seconds without a heartbeat after which a worker's loop counts as hung
CATCH_UP = 1.0  # seconds until a worker that was not reading is told again
START_GRACE = 20.0  # seconds that a worker may take to its first heartbeat
NANO = 1_000_000_000


def backoff(failures: int) -> float:
    """Seconds to wait before the start that follows `failures` early ends in a row: 0, 0, 0.5, 1, 2, … 30."""
    # The exponent has a limit of its own: after a day of a crash loop the power would be too large for a float.
    return 0.0 if failures < 2 else min(BACKOFF_LIMIT, 0.25 * 2.0 ** min(failures - 1, 10))


@dataclass(slots=True)
class WorkerProcess:
    """One place in the pool and the process that fills it now."""

    index: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    ready: bool = False
    behind: bool = False  # it was not reading, and has not been told everything
    started: float = 0.0
    unready_since: float = 0.0
    failures: int = 0  # early ends in a row
    restarts: int = 0
    watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


def _environment() -> dict[str, str]:
    """A worker imports the same relay as the supervisor, and nothing from the folder that this was started in.

    `-m` would put that folder first on the path (PYTHONSAFEPATH, Python 3.11, keeps it off). Only where the supervisor
    itself runs from a source tree (`python -m relay` in it) is that folder where relay is.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    root = str(Path(relay.__file__).resolve().parent.parent)
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(root):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return environment


class Pool:
    """All workers of one relay. `log` is the service log.

    `changed` is called when a worker is ready, or is no more; `greeting` gives what each has to know first of all, and
    `failing` is called with the hosts that a worker cannot connect to.
    """

    def __init__(
        self,
        plan: Plan,
        log: Any,
        changed: Callable[[], None],
        greeting: Callable[[], list[Message]],
        failing: Callable[[Sequence[str]], None],
    ) -> None:
        self._plan = plan
        self._greeting = greeting
        self._failing = failing
        self._log = log
        self._changed = changed
        self._stopping = asyncio.Event()
        self.retired = [0] * plan.layout.size  # counters of workers that are no more
        self.workers = [WorkerProcess(index) for index in range(plan.workers)]

    async def start(self) -> None:
        """Start every worker."""
        for worker in self.workers:
            worker.unready_since = time.monotonic()
            await self._spawn(worker)

    def hung(self, worker: WorkerProcess, now: float) -> bool:
        """Whether the worker's own loop has been silent for too long. A worker that is being replaced is not hung."""
        if worker.process is None:
            return False
        beat = self._plan.table.blocks[worker.index][counters.HEARTBEAT]
        if not beat:
            return now - worker.started > START_GRACE
        return now - beat / NANO > HANG

    def drain(self, window: float) -> None:
        """Tell every worker to finish within `window` seconds; none is replaced from now on."""
        self._stopping.set()
        self._plan.close_sockets()
        self._tell(Drain(window))

    def stop(self) -> None:
        """Tell every worker to end now."""
        self._stopping.set()
        self._plan.close_sockets()
        self._tell(Stop())

    async def wait(self, seconds: float) -> bool:
        """Wait until all workers have ended; False if some have not in that time."""
        tasks = [worker.watch for worker in self.workers if worker.watch is not None]
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=seconds)
        return not pending

    async def kill(self) -> None:
        """End by force what is left, and account for it."""
        for worker in self.workers:
            if worker.process is not None and worker.process.returncode is None:
                self._log.error("worker killed", worker=worker.index, pid=worker.pid, reason="did not end when told to")
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
        await self.wait(5.0)

    def tell(self, message: Message) -> None:
        """Tell every worker that runs; one that does not take it is told everything anew later."""
        for worker in self.workers:
            if worker.channel is not None and not worker.behind:
                try:
                    worker.channel.send(message)
                except ChannelFull:
                    self._fall_behind(worker, worker.channel)
                except OSError:
                    pass  # it has ended, and `_watch` learns of it

    def _fall_behind(self, worker: WorkerProcess, channel: Channel) -> None:
        if not worker.behind:
            worker.behind = True
            self._log.warning("worker does not read", worker=worker.index, pid=worker.pid)
        asyncio.get_running_loop().call_later(CATCH_UP, self._catch_up, worker, channel)

    def _catch_up(self, worker: WorkerProcess, channel: Channel) -> None:
        if worker.channel is channel:  # it is not another one by now
            self._greet(worker, channel)

    def _greet(self, worker: WorkerProcess, channel: Channel) -> None:
        """Tell a worker everything that it has to know."""
        try:
            for message in self._greeting():
                channel.send(message)
        except ChannelFull:
            self._fall_behind(worker, channel)
        except OSError:
            pass  # it has ended, and `_watch` learns of it
        else:
            worker.behind = False

    def _tell(self, message: Message) -> None:
        for worker in self.workers:
            if worker.channel is not None:
                try:
                    worker.channel.send(message)
                except (OSError, ChannelFull) as error:
                    self._log.warning("worker not reached", worker=worker.index, message=message.kind, error=str(error))
            elif worker.process is None and worker.watch is not None:
                worker.watch.cancel()  # it waits for its next start

    async def _spawn(self, worker: WorkerProcess) -> None:
        ours, theirs = control.pair()
        channel = Channel(ours)
        try:
            # The message waits in the socket until the process reads it, its descriptors with it.
            sockets = self._plan.worker_sockets(worker.index)
            orders = self._plan.worker_spec(worker.index).to_file()
            try:
                listening = [sock.fileno() for sock in sockets]
                tables = [self._plan.table.descriptor, self._plan.rates.descriptor]
                channel.send(Start(), [orders, *tables, *listening])
            finally:
                os.close(orders)
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "relay.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(),
                # A terminal's Ctrl-C is for the supervisor. A worker ignores it as well, but not before its interpreter
                # has come that far, and would end with a traceback.
                start_new_session=True,
            )
        except BaseException:
            channel.close()
            raise
        finally:
            theirs.close()
        worker.channel = channel
        self._greet(worker, channel)
        worker.started = time.monotonic()
        asyncio.get_running_loop().add_reader(channel.fileno(), self._receive, worker, channel)
        worker.watch = asyncio.create_task(self._watch(worker))
        self._log.debug("worker started", worker=worker.index, pid=worker.pid)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Wait for the worker's end, clear up after it, and start its successor."""
        assert worker.process is not None
        status = await worker.process.wait()
        self._clear(worker, status)
        while not self._stopping.is_set():
            await asyncio.sleep(backoff(worker.failures))
            if self._stopping.is_set():
                return
            worker.restarts += 1
            try:
                await self._spawn(worker)
                return
            except OSError as error:
                worker.failures += 1
                self._log.error("worker not started", worker=worker.index, error=str(error))

    def _clear(self, worker: WorkerProcess, status: int) -> None:
        plan, now = self._plan, time.monotonic()
        if worker.channel is not None:
            self._drain_channel(worker, worker.channel)
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
            worker.channel.close()
        pid = worker.pid
        worker.channel = worker.process = None
        worker.behind = False
        worker.ready = False
        worker.unready_since = now
        block = plan.table.blocks[worker.index]
        lost = counters.fold(plan.layout, block, self.retired, Outcome.WORKER_DIED.index)
        clear_column(plan.limits, worker.index, plan.table.counts, plan.table.sources)
        worker.failures = worker.failures + 1 if now - worker.started < STEADY else 1
        if not self._stopping.is_set() or status != 0:
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            self._log.error(
                "worker died",
                worker=worker.index,
                pid=pid,
                how=how,
                connections_lost=lost,
                restart_in_seconds=None if self._stopping.is_set() else backoff(worker.failures),
            )
        self._changed()

    def _receive(self, worker: WorkerProcess, channel: Channel) -> None:
        if not self._drain_channel(worker, channel):
            # Its end is closed; `_watch` learns of the process's end and clears up.
            asyncio.get_running_loop().remove_reader(channel.fileno())

    def _drain_channel(self, worker: WorkerProcess, channel: Channel) -> bool:
        """Take every message that is there; False when the other end is closed."""
        while True:
            try:
                received = channel.receive()
            except BlockingIOError:
                return True
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._log.error("bad message from worker", worker=worker.index, error=repr(error))
                return False
            if received is None:
                return False
            message, descriptors = received
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(message, Ready):
                worker.ready = True
                self._log.info("worker ready", worker=worker.index, pid=message.pid)
                self._changed()
            elif isinstance(message, Failing):
                self._failing(message.hosts)
            elif isinstance(message, Log):
                extra = {"traceback": message.traceback} if message.traceback else {}
                write = getattr(self._log, message.level, self._log.error)
                write(message.text, worker=worker.index, logger=message.logger, **extra)
