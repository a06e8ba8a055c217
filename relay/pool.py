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
import time
from collections.abc import Callable, Sequence
from typing import Any

from relay.binding import bind_again
from relay.control import Apply, Channel, ChannelFull, Drain, Failing, Log, Message, Outbox, Ready, Stop
from relay.core import counters, failed_dials
from relay.core.limit_table import clear_column
from relay.hangs import Hangs
from relay.outcome import Outcome
from relay.plan import Plan
from relay.worker_process import WorkerProcess, backoff, launch

STEADY = 10.0  # seconds that a worker must have lived for its end not to count as part of a crash loop
LOOP = 3  # early ends in a row that make a crash loop


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
        self._closing: Drain | None = None  # what is told to every worker while nothing is accepted
        self._version = 0  # of what a worker is told at its start
        self.retired = [0] * plan.layout.size  # counters of workers that are no more
        self.retired_dials: failed_dials.Counts = {}  # those of theirs that failed, by address
        self.workers = [WorkerProcess(index) for index in range(plan.workers)]
        self._hangs = Hangs(plan, self.workers, self._kill, log)
        self.hung = self._hangs.hung
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every worker."""
        for worker in self.workers:
            worker.unready_since = time.monotonic()
            await self._spawn(worker)
        self._watching = asyncio.create_task(self._hangs.watch())

    def looping(self, worker: WorkerProcess, now: float) -> bool:
        """Whether it has died young again and again, and has not lived long enough since."""
        return worker.failures >= LOOP and (worker.process is None or now - worker.started < STEADY)

    def close_evenly(self, closed_at: float, over_at: float) -> None:
        """Accept no more; close what is established evenly until then, what is left by force (monotonic seconds).

        A worker that dies is not replaced meanwhile: there would be nothing for it to do.
        """
        self._closing = Drain(closed_at, over_at)
        self._version += 1
        self._plan.leave(self._plan.bindings())
        self.tell(self._closing)

    def resume(self) -> asyncio.Future[Any]:
        """Accept again, at once. Raises StartError if the addresses cannot be had, and nothing has changed.

        What is returned can be waited for: those workers run again that ended meanwhile.
        """
        started: list[asyncio.Task[None]] = []
        if self._closing is not None:
            bind_again(self._plan)
            self._closing = None
            self.apply([binding.address for binding in self._plan.bindings()])
            for worker in self.workers:
                if worker.channel is None and (worker.watch is None or worker.watch.done()):
                    worker.watch = asyncio.create_task(self._start_again(worker))
                    started.append(worker.watch)
        return asyncio.gather(*started)

    def apply(self, addresses: list[str]) -> None:
        """Let every worker serve as the plan says now; there are new listening sockets at these addresses."""
        self._version += 1
        for worker in self.workers:
            if worker.channel is None or worker.outbox is None:
                continue  # its successor is told at its start
            orders = self._plan.worker_spec(worker.index).to_file()
            try:
                sockets = self._plan.worker_sockets(worker.index, addresses)
                descriptors = [orders, *(sock.fileno() for sock in sockets)]
                self._order(worker, worker.channel, Apply(tuple(addresses)), descriptors)
            finally:
                os.close(orders)
            worker.outbox.renew()
            self._send(worker, worker.outbox)

    def _order(self, worker: WorkerProcess, channel: Channel, message: Message, descriptors: Sequence[int]) -> None:
        """What cannot be told later, for descriptors come with it: a worker that does not take it is replaced."""
        try:
            channel.send(message, descriptors)
        except ChannelFull:
            self._kill(worker, "does not read")
        except OSError:
            pass  # it has ended, and `_watch` learns of it

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        if worker.process is not None and worker.process.returncode is None:
            self._log.error("worker killed", worker=worker.index, pid=worker.pid, reason=reason)
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def stop(self) -> None:
        """Tell every worker to end now."""
        self._stopping.set()
        if self._watching is not None:
            self._watching.cancel()
        self._version += 1
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
        try:
            told = outbox.send()
        except OSError:
            told = True  # it has ended, and `_watch` learns of it
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

    async def _spawn(self, worker: WorkerProcess) -> None:
        """Start a process, unless one is being started or there is nothing for it to do. Raises OSError."""
        if worker.starting:
            return
        worker.starting = True
        try:
            while not self._stopping.is_set() and self._closing is None:
                version = self._version
                process, channel = await launch(self._plan, worker.index)
                if version == self._version:
                    self._adopt(worker, process, channel)
                    return
                # What it was told at its start does not hold any more, its listening sockets perhaps among it.
                channel.close()
                process.kill()
                await process.wait()
        finally:
            worker.starting = False

    def _adopt(self, worker: WorkerProcess, process: asyncio.subprocess.Process, channel: Channel) -> None:
        worker.process, worker.channel = process, channel
        worker.outbox = Outbox(channel, self._everything)
        self._send(worker, worker.outbox)
        worker.started = time.monotonic()
        asyncio.get_running_loop().add_reader(channel.fileno(), self._receive, worker, channel)
        worker.watch = asyncio.create_task(self._watch(worker))
        self._log.debug("worker started", worker=worker.index, pid=worker.pid)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Wait for the worker's end, clear up after it, and start its successor."""
        assert worker.process is not None
        status = await worker.process.wait()
        self._clear(worker, status)
        await self._start_again(worker)

    async def _start_again(self, worker: WorkerProcess) -> None:
        """Start a worker that has ended, unless there is nothing for it to do; what fails is tried again."""
        while not self._stopping.is_set() and self._closing is None:
            await asyncio.sleep(backoff(worker.failures))
            if self._stopping.is_set() or self._closing is not None:
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
            asyncio.get_running_loop().remove_writer(worker.channel.fileno())
            worker.channel.close()
        pid = worker.pid
        worker.channel = worker.outbox = worker.process = None
        worker.behind = False
        worker.ready = False
        worker.unready_since = now
        block = plan.table.blocks[worker.index]
        counters.fold_failed(plan.layout, block, self.retired_dials)
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
