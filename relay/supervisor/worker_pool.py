"""The worker processes: start, watch, replace, stop.

A worker that ends without having been told to is replaced at once the first time, then after growing pauses
(`backoff`), so that a crash loop neither spins nor gives up; one that cannot be started is tried again likewise. Its
listening sockets stay open here, so connections in their queues wait for its successor. What it held is given back,
what it counted is kept, and the connections that it carried are accounted as lost with it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import time
from collections.abc import Callable, Sequence

from relay.core import counters, failed_dials
from relay.core.limit_table import clear_column
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

GONE = frozenset({errno.EPIPE, errno.ECONNRESET})  # of a channel whose other end is closed
STEADY = 10.0  # seconds that a worker must have lived for its end not to count as part of a crash loop
LOOP = 3  # early ends in a row that make a crash loop


class WorkerPool:
    """All workers of one relay. `log` is the service log.

    `changed` is called when a worker is ready, or is no more; `greeting` gives what each has to know first of all, and
    `failing` is called with the hosts that a worker cannot connect to.
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
        self._closing: Drain | None = None  # what is told to every worker while nothing is accepted
        self.retired = [0] * instance.layout.size  # counters of workers that are no more
        self.retired_dials: failed_dials.Counts = {}  # those of theirs that failed, by address
        self._seen = [[0] * instance.layout.size for _ in range(instance.workers)]  # those of workers that run
        self.workers = [WorkerProcess(index) for index in range(instance.workers)]
        self._hang_detector = HangDetector(instance, self.workers, self._kill, log)
        self.hung = self._hang_detector.hung
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every worker, unless a drain that was taken back has done so already."""
        for worker in self.workers:
            worker.unready_since = time.monotonic()
            if worker.watch is None:
                self._fill(worker)
        self._watching = asyncio.create_task(keep_running("the watch for hangs", self._hang_detector.watch, self._log))

    def look(self) -> list[list[int]]:
        """What each worker's block says, as far as it can be believed. Not to be kept: the next look changes it."""
        for block, seen in zip(self._instance.table.blocks, self._seen, strict=True):
            counters.look(self._instance.layout, block, seen, self._instance.descriptors)
        return self._seen

    def looping(self, worker: WorkerProcess, now: float) -> bool:
        """Whether it has died young again and again, and has not lived long enough since."""
        return worker.failures >= LOOP and (worker.process is None or now - worker.started < STEADY)

    def close_evenly(self, closed_at: float, over_at: float) -> None:
        """Accept no more; close what is established evenly until then, what is left by force (monotonic seconds).

        A worker that dies is not replaced meanwhile: there would be nothing for it to do.
        """
        self._closing = Drain(closed_at, over_at)
        self._instance.leave(self._instance.bindings())
        self.tell(self._closing)

    def resume(self) -> None:
        """Accept again, at once; workers that ended meanwhile are started.

        Raises StartError if the addresses cannot be had, and nothing has changed.
        """
        if self._closing is None:
            return
        bind_again(self._instance)
        self._closing = None
        self.apply([binding.address for binding in self._instance.bindings()])
        for worker in self.workers:
            if worker.channel is None and (worker.watch is None or worker.watch.done()):
                self._fill(worker)

    def apply(self, addresses: list[str]) -> None:
        """Let every worker serve as the instance says now; there are new listening sockets at these addresses."""
        for worker in self.workers:
            if worker.channel is None or worker.outbox is None:
                continue  # its successor is told at its start
            try:
                self._order(worker.index, worker.channel, addresses)
            except ChannelFull:
                self._kill(worker, "does not read")
            except OSError as error:
                self._not_told(worker, error)
            worker.outbox.renew()
            self._send(worker, worker.outbox)

    def _order(self, index: int, channel: Channel, addresses: list[str]) -> None:
        """What cannot be told later, for descriptors come with it: a worker that does not take it is replaced."""
        orders = self._instance.worker_spec(index).to_file()
        try:
            sockets = self._instance.worker_sockets(index, addresses)
            channel.send(Apply(tuple(addresses)), [orders, *(sock.fileno() for sock in sockets)])
        finally:
            os.close(orders)

    def _not_told(self, worker: WorkerProcess, error: OSError) -> None:
        """It has ended, of which its task learns; or this machine is short of something, and it must not live on."""
        if error.errno not in GONE:
            self._kill(worker, f"cannot be told what holds: {error.strerror}")

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        if worker.process is not None and worker.process.returncode is None:
            self._log.error("worker killed", worker=worker.index, pid=worker.pid, reason=reason)
            worker.process.kill()

    def stop(self) -> None:
        """Tell every worker to end now."""
        self._stopping.set()
        if self._watching is not None:
            self._watching.cancel()
        self._instance.close_sockets()
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
            self._kill(worker, "did not end when told to")
        await self.wait(5.0)

    def _everything(self) -> list[Message]:
        """What a worker has to know."""
        return [*self._greeting(), *([self._closing] if self._closing is not None else [])]

    def tell(self, message: Message) -> None:
        """Tell every worker that runs; one that does not take it is told when it reads again."""
        for worker in self.workers:
            if worker.outbox is not None:
                worker.outbox.add(message)
                if not worker.behind:  # else it is sent once there is room
                    self._send(worker, worker.outbox)

    def _send(self, worker: WorkerProcess, outbox: Outbox) -> None:
        """Let a worker have what it is to be told; what it does not take now, once it has read."""
        loop = asyncio.get_running_loop()
        told = None
        while told is None:
            try:
                told = outbox.send()
            except ValueError as error:  # one message is too long; the others wait behind it
                self._log.error("worker not told", worker=worker.index, error=str(error))
            except OSError as error:
                told = True
                self._not_told(worker, error)
        if not told and not worker.behind:
            worker.behind = True
            self._log.warning("worker does not read", worker=worker.index, pid=worker.pid)
            loop.add_writer(outbox.fileno(), self._send, worker, outbox)
        elif told and worker.behind:
            worker.behind = False
            loop.remove_writer(outbox.fileno())

    def _tell(self, message: Message) -> None:
        for worker in self.workers:
            if worker.channel is not None:
                try:
                    worker.channel.send(message)
                except (OSError, ChannelFull) as error:
                    self._log.warning("worker not reached", worker=worker.index, message=message.kind, error=str(error))
            elif worker.process is None and worker.watch is not None:
                worker.watch.cancel()  # it waits for its next start

    def _fill(self, worker: WorkerProcess) -> None:
        """See to it that there is a process in this place as long as one is wanted."""
        work = functools.partial(self._run, worker)
        worker.watch = asyncio.create_task(keep_running(f"worker {worker.index}", work, self._log))

    async def _run(self, worker: WorkerProcess) -> None:
        while True:
            if worker.process is not None:
                self._clear(worker, await worker.process.wait())
            if not self._wanted():
                return
            await asyncio.sleep(backoff(worker.failures))
            if not self._wanted():
                return
            try:
                self._spawn(worker)
            except OSError as error:
                worker.failures += 1
                pause = backoff(worker.failures)
                self._log.error("worker not started", worker=worker.index, error=str(error), next_try_in_seconds=pause)

    def _wanted(self) -> bool:
        """Whether there is something to do for workers that are started now."""
        return not self._stopping.is_set() and self._closing is None

    def _spawn(self, worker: WorkerProcess) -> None:
        """Start a process. Raises OSError."""
        process, channel = launch(self._instance, worker.index)
        worker.process, worker.channel = process, channel
        if problem := goes_first(process.pid):
            text = "when memory runs out the kernel may kill the supervisor before this worker"
            self._log.warning(text, worker=worker.index, error=problem)
        worker.restarts += worker.started > 0
        worker.started = time.monotonic()
        try:
            worker.inbox = Inbox(
                channel,
                functools.partial(self._ready, worker),
                self._failing,
                functools.partial(self._kill, worker),
                self._log.bind(worker=worker.index),
            )
            worker.outbox = Outbox(channel, self._everything)
            self._send(worker, worker.outbox)
        except BaseException:
            process.kill()  # it would live on unheard
            raise
        self._log.debug("worker started", worker=worker.index, pid=worker.pid)

    def _ready(self, worker: WorkerProcess) -> None:
        worker.ready = True
        self._log.info("worker ready", worker=worker.index, pid=worker.pid)
        self._changed()

    def _clear(self, worker: WorkerProcess, status: int) -> None:
        """Clear up after a process that has ended; an exception on the way is no reason to leave the rest."""
        loop, now, pid = asyncio.get_running_loop(), time.monotonic(), worker.pid
        channel, inbox = worker.channel, worker.inbox
        worker.process = worker.channel = worker.inbox = worker.outbox = None
        worker.behind = worker.ready = False
        worker.unready_since = now
        worker.failures = worker.failures + 1 if now - worker.started < STEADY else 1
        if inbox is not None:
            with guarded("a worker's last words", self._log):
                inbox.close()
        if channel is not None:
            loop.remove_reader(channel.fileno())
            loop.remove_writer(channel.fileno())
            channel.close()
        lost = 0
        with guarded("what a worker held", self._log):
            clear_column(self._instance.limits, worker.index, self._instance.table.counts, self._instance.table.sources)
        with guarded("a worker's accounts", self._log):
            lost = self._settle(worker.index)
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

    def _settle(self, index: int) -> int:
        """Keep what a dead worker counted; how many connections were lost with it."""
        instance, seen = self._instance, self.look()[index]
        counters.fold_failed(instance.layout, seen, self.retired_dials)
        lost = counters.fold(instance.layout, seen, self.retired, Outcome.WORKER_DIED.index)
        block = instance.table.blocks[index]
        for cell in range(instance.layout.size):
            block[cell] = 0
        return lost


def _how(status: int) -> str:
    """In words."""
    return f"status {status}" if status >= 0 else f"signal {signal_name(-status)}"
