"""The worker processes: start, watch, replace, stop.

A worker that dies is replaced: at once the first time, then with backoff, so that a crash loop neither spins nor gives
up. A start that fails is retried with the same backoff. The dead worker's listening sockets stay open here, so that
connections in their accept queues wait for its successor. Its share of the limits is released, its counters are kept,
and its connections are counted as `worker_died`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import time
from collections.abc import Callable, Sequence

from relay.core import counters, failed_dials
from relay.core.limit_table import Row, clear_column
from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import Apply, Drain, Message, Stop
from relay.ipc.outbox import Outbox
from relay.outcome import Outcome
from relay.process import signal_name
from relay.supervisor.hang_detector import HangDetector
from relay.supervisor.inbox import Inbox
from relay.supervisor.instance import Instance
from relay.supervisor.listening import bind_again
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import guarded, keep_running
from relay.supervisor.worker_process import WorkerProcess, backoff, goes_first, launch

GONE = frozenset({errno.EPIPE, errno.ECONNRESET})  # sending on a channel whose other end is closed
KILL_GRACE = 5.0  # seconds that `kill` waits for the killed processes


class WorkerPool:
    """All workers of one relay. `log` is the service log.

    `changed` is called when a worker becomes ready or has ended. `greeting` gives the messages that a worker gets
    first. `failing` is called with the hosts that a worker cannot connect to.
    """

    def __init__(
        self,
        instance: Instance,
        log: ServiceLog,
        changed: Callable[[], None],
        greeting: Callable[[], list[Message]],
        failing: Callable[[Sequence[str]], None],
    ) -> None:
        self._instance = instance
        self._greeting = greeting
        self._failing = failing
        self._log = log
        self._changed = changed
        self._stopping = asyncio.Event()
        self._drain: Drain | None = None  # the message to every worker while the instance does not accept
        self.retired = counters.SparseRow()  # counters of workers that have ended
        self.retired_dials: failed_dials.Counts = {}  # their failed dials by address
        self._seen = [counters.SparseRow() for _ in range(instance.workers)]  # rows of `snapshot`
        self.workers = [WorkerProcess(index) for index in range(instance.workers)]
        self._hang_detector = HangDetector(instance, self.workers, self._kill, log)
        self._detecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every worker that an undrain before this call has not started already."""
        for worker in self.workers:
            worker.unready_since = time.monotonic()
            if worker.task is None:
                self._keep_filled(worker)
        self._detecting = asyncio.create_task(keep_running("hang detector", self._hang_detector.watch, self._log))

    def snapshot(self, used: counters.Used | None = None) -> Sequence[Row]:
        """The plausible values of each worker's block, one row a worker. The next call overwrites the rows.

        `used`: only these numbers are brought up to date.
        """
        instance, used = self._instance, used or self._instance.used
        for block, seen in zip(instance.table.blocks, self._seen, strict=True):
            counters.look(instance.layout, block, seen, instance.descriptors, used)
        return self._seen

    def active(self) -> int:
        """Connections of all workers that have not ended."""
        layout, used = self._instance.layout, counters.Used(self._instance.used.listeners, 0)
        rows = self.snapshot(used)
        return sum(counters.unfinished(layout, row, number) for row in rows for number in range(used.listeners))

    def hung(self, worker: WorkerProcess, now: float) -> bool:
        """Whether the worker's event loop has not answered for too long (`hang_detector.HANG`)."""
        return self._hang_detector.hung(worker, now)

    def drain(self, closed_at: float, over_at: float) -> None:
        """Stop accepting; close connections evenly until `closed_at`, those left at `over_at` by force.

        Times are monotonic seconds. A worker that dies meanwhile is not replaced: it would have no connections.
        """
        self._drain = Drain(closed_at, over_at)
        self._instance.unlisten(self._instance.bindings())
        self.tell(self._drain)

    def resume(self) -> None:
        """Accept again at once; start the workers that ended meanwhile.

        Raises StartError if an address cannot be bound; then nothing has changed.
        """
        if self._drain is None:
            return
        bind_again(self._instance)
        self._drain = None
        self.apply([binding.address for binding in self._instance.bindings()])
        for worker in self.workers:
            if worker.channel is None and (worker.task is None or worker.task.done()):
                self._keep_filled(worker)

    def apply(self, addresses: list[str]) -> None:
        """Send the instance's present state to every worker, with its listening sockets at `addresses`, the new ones.

        A worker that cannot take the message, which carries descriptors and so cannot wait, is killed and replaced.
        """
        for worker in self.workers:
            if worker.channel is None or worker.outbox is None:
                continue  # its successor gets the state at its start
            try:
                self._send_spec(worker.index, worker.channel, addresses)
            except ChannelFull:
                self._kill(worker, "does not read")
            except OSError as error:
                self._send_failed(worker, error)
            worker.outbox.renew()
            self._flush(worker, worker.outbox)

    def _send_spec(self, index: int, channel: Channel, addresses: list[str]) -> None:
        """Send a worker its spec and new listening sockets. Raises ChannelFull or OSError."""
        spec = self._instance.worker_spec(index).to_file()
        try:
            sockets = self._instance.worker_sockets(index, addresses)
            tables = self._instance.worker_tables()
            channel.send(Apply(tuple(addresses)), [spec, *tables, *(sock.fileno() for sock in sockets)])
        finally:
            os.close(spec)

    def _send_failed(self, worker: WorkerProcess, error: OSError) -> None:
        """Kill a worker that missed a message for want of memory or descriptors; do nothing if it has ended."""
        if error.errno not in GONE:
            self._kill(worker, f"cannot be sent its state: {error.strerror}")

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        if worker.process is not None and worker.process.returncode is None:
            self._log.error("worker killed", worker=worker.index, pid=worker.pid, reason=reason)
            worker.process.kill()

    def stop(self) -> None:
        """Tell every worker to end now, and start no more."""
        self._stopping.set()
        if self._detecting is not None:
            self._detecting.cancel()
        self._instance.close_sockets()
        for worker in self.workers:
            if worker.channel is not None:
                self._send_stop(worker, worker.channel)
            elif worker.process is None and worker.task is not None:
                worker.task.cancel()  # it waits for its next start

    async def wait(self, seconds: float) -> bool:
        """Wait until all workers have ended; False if some still run after `seconds`."""
        tasks = [worker.task for worker in self.workers if worker.task is not None]
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=seconds)
        return not pending

    async def kill(self) -> None:
        """Kill the workers that still run, wait for their end and keep their counters."""
        for worker in self.workers:
            self._kill(worker, "did not end when told to")
        await self.wait(KILL_GRACE)

    def _current_state(self) -> list[Message]:
        """The messages that bring a new worker up to date."""
        return [*self._greeting(), *([self._drain] if self._drain is not None else [])]

    def tell(self, message: Message) -> None:
        """Send a message to every worker that runs; a worker that does not read gets it when it reads again."""
        for worker in self.workers:
            if worker.outbox is not None:
                worker.outbox.add(message)
                if not worker.behind:  # else a writer callback sends it once there is room
                    self._flush(worker, worker.outbox)

    def _flush(self, worker: WorkerProcess, outbox: Outbox) -> None:
        """Send what waits in a worker's outbox; the rest follows when the channel has room again."""
        loop = asyncio.get_running_loop()
        flushed = None
        while flushed is None:
            try:
                flushed = outbox.send()
            except ValueError as error:  # one message is too long: it is dropped, and those behind it are sent
                self._log.error("worker not told", worker=worker.index, error=str(error))
            except OSError as error:
                flushed = True
                self._send_failed(worker, error)
        if not flushed and not worker.behind:
            worker.behind = True
            self._log.warning("worker does not read", worker=worker.index, pid=worker.pid)
            loop.add_writer(outbox.fileno(), self._flush, worker, outbox)
        elif flushed and worker.behind:
            worker.behind = False
            loop.remove_writer(outbox.fileno())

    def _send_stop(self, worker: WorkerProcess, channel: Channel) -> None:
        """Send Stop ahead of whatever waits in the outbox."""
        message = Stop()
        try:
            channel.send(message)
        except (OSError, ChannelFull) as error:
            self._log.warning("worker not reached", worker=worker.index, message=message.kind, error=str(error))

    def _keep_filled(self, worker: WorkerProcess) -> None:
        """Start the worker's task, which runs a process as long as one is wanted."""
        work = functools.partial(self._run, worker)
        worker.task = asyncio.create_task(keep_running(f"worker {worker.index}", work, self._log))

    async def _run(self, worker: WorkerProcess) -> None:
        while True:
            if worker.process is not None:
                self._clean_up(worker, await worker.process.wait())
            if not self._wanted():
                return
            await asyncio.sleep(backoff(worker.failures))
            if not self._wanted():
                return
            try:
                self._spawn(worker)
            except OSError as error:
                worker.not_launched()
                pause = backoff(worker.failures)
                self._log.error("worker not started", worker=worker.index, error=str(error), next_try_in_seconds=pause)

    def _wanted(self) -> bool:
        """Whether a worker that is started now would have something to do."""
        return not self._stopping.is_set() and self._drain is None

    def _spawn(self, worker: WorkerProcess) -> None:
        """Start a process. Raises OSError."""
        process, channel = launch(self._instance, worker.index)
        worker.launched(process, channel)
        if problem := goes_first(process.pid):
            text = "when memory runs out the kernel may kill the supervisor before this worker"
            self._log.warning(text, worker=worker.index, error=problem)
        try:
            worker.inbox = Inbox(
                channel,
                functools.partial(self._ready, worker),
                self._failing,
                functools.partial(self._kill, worker),
                self._log.bind(worker=worker.index),
            )
            worker.outbox = Outbox(channel, self._current_state)
            self._flush(worker, worker.outbox)
        except BaseException:
            process.kill()  # nobody would read its messages
            raise
        self._log.debug("worker started", worker=worker.index, pid=worker.pid)

    def _ready(self, worker: WorkerProcess) -> None:
        worker.ready = True
        self._log.info("worker ready", worker=worker.index, pid=worker.pid)
        self._changed()

    def _clean_up(self, worker: WorkerProcess, status: int) -> None:
        """Release what an ended process held; an exception in one step does not keep the others from running."""
        loop, pid = asyncio.get_running_loop(), worker.pid
        channel, inbox = worker.channel, worker.inbox
        worker.ended()
        if inbox is not None:
            with guarded("a worker's last messages", self._log):
                inbox.close()
        if channel is not None:
            loop.remove_reader(channel.fileno())
            loop.remove_writer(channel.fileno())
            channel.close()
        lost = 0
        with guarded("a worker's customers", self._log):
            self._instance.customers.retire(worker.index)
        with guarded("a worker's share of the limits", self._log):
            clear_column(self._instance.limits, worker.index, self._instance.table.counts, self._instance.table.sources)
        with guarded("a worker's counters", self._log):
            lost = self._retire_counters(worker.index)
        if not self._stopping.is_set() or status != 0:
            self._log.error(
                "worker died",
                worker=worker.index,
                pid=pid,
                how=_how(status),
                connections_lost=lost,
                restart_in_seconds=backoff(worker.failures) if self._wanted() else None,
            )
        self._changed()

    def _retire_counters(self, index: int) -> int:
        """Add an ended worker's counters to the retired ones; returns how many connections were lost with it."""
        instance, used = self._instance, self._instance.used
        self.snapshot()
        seen = self._seen[index]
        counters.fold_failed(instance.layout, seen, self.retired_dials, used)
        lost = counters.fold(instance.layout, seen, self.retired, Outcome.WORKER_DIED.index, used)
        instance.table.clear_block(index)
        return lost


def _how(status: int) -> str:
    """How a process ended, in words."""
    return f"status {status}" if status >= 0 else f"signal {signal_name(-status)}"
