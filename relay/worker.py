"""A worker process: client traffic, and nothing else.

It is started with one descriptor, its end of the control channel, and gets everything else through it. Its loop ticks a
few times a second: the tick is its heartbeat, looks at deadlines, and publishes its gauges. It ends when it is told to,
or when the supervisor is gone: traffic that nobody watches would be worse than none, and systemd starts a new relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

from relay import process
from relay.address import parse_hostport
from relay.core import counters
from relay.core.counters import Layout
from relay.core.drain import AgePace, Pace
from relay.engines.choice import make_loop
from relay.engines.contract import Event
from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import AllUp, Apply, Barred, Checked, Drain, Failing, Log, Message, Ready, Resolved, Start, Stop
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import WorkerSpec
from relay.log_writer import LogWriter, mark_output
from relay.outcome import OUTCOMES
from relay.service import Service

TICK = 0.5  # seconds; waking a processor that sleeps is what silent connections cost
DRAIN_TICK = 0.1  # seconds
LOG_FLUSH = 1.0  # seconds that the end waits for the last access lines
STDOUT = 1
START_TIMEOUT = 30.0  # seconds; the supervisor sends the start message before the process exists
MESSAGES = 16  # taken from the supervisor before connections get their turn


logger = logging.getLogger("relay.worker")


class Worker:
    """One worker's life: start, serve, drain, end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, channel: Channel, spec: WorkerSpec, table: Table, rates: RateTable
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._spec = spec
        self._block = table.blocks[spec.index]
        self._log_writer = LogWriter(STDOUT) if spec.access_log else None
        self._drain: Drain | None = None
        self._pace = Pace(0, 0.0, 0.0)
        self._age_pace = AgePace()
        self._expected_tick = 0.0
        self._ticking = False  # the engine has more to look at, and is about to be asked to
        self.done = asyncio.Event()
        self._clock = time.monotonic
        write = self._log_writer.write if self._log_writer is not None else None
        self._service = Service(loop, spec, table, rates, write, self._report)
        self._engine = self._service.engine

    def start(self, addresses: Sequence[str], sockets: list[socket.socket]) -> None:
        """Accept on the listening sockets, which are those of the addresses; begin to tick."""
        self._service.apply(self._spec, addresses, sockets)
        self._expected_tick = self._clock()
        self._tick()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        self._channel.send(Ready(os.getpid()))

    def drain(self, order: Drain) -> None:
        """Accept no more; close what is established evenly, oldest first."""
        began, self._drain = self._drain is not None, order
        self._engine.stop_listening()
        now = self._clock()
        self._pace = Pace(self._engine.connections, now, order.closed_at)
        if not began:
            self._tick_drain()

    def _tick_drain(self) -> None:
        order, now = self._drain, self._clock()
        if order is None or self.done.is_set():
            return
        if now >= order.over_at:
            self._engine.stop()
            return
        # Those that are connected late go with the last of them.
        count = self._pace.due(now) if now < order.closed_at else self._engine.connections
        if count:
            self._engine.close_gracefully(count, Event.DRAINED)
        self._loop.call_later(DRAIN_TICK, self._tick_drain)

    def end(self) -> None:
        """Close everything, now."""
        self._engine.close()
        self._publish(self._clock())
        if self._service.access_log is not None and self._log_writer is not None:
            self._service.access_log.flush()
            self._log_writer.flush(LOG_FLUSH)
            self._block[counters.LOG_DROPPED] = self._log_writer.dropped
        self.done.set()

    def _tick(self) -> None:
        now = self._clock()
        self._block[counters.LAG] = int(max(0.0, now - self._expected_tick) * 1e9)
        if not self._ticking:
            self._tick_engine()
        self._publish(now)
        if self._service.access_log is not None:
            self._service.access_log.tick(now)
        if self._service.ages is not None:
            self._tick_ages()
        if not self.done.is_set():
            self._expected_tick = now + TICK
            self._loop.call_later(TICK, self._tick)

    def _tick_engine(self) -> None:
        """Let the engine look at its deadlines, again after the others' turn until it has seen everything."""
        self._ticking = not self.done.is_set() and self._engine.tick(self._clock())
        if self._ticking:
            self._loop.call_soon(self._tick_engine)

    def _tick_ages(self) -> None:
        """End those that have lived long enough: no faster than a drain would, and all of them in its time."""
        waiting = self._engine.close_expired(0, Event.AGED)
        count = self._age_pace.due(self._engine.connections, waiting, TICK, self._spec.drain_window)
        if count:
            self._engine.close_expired(count, Event.AGED)

    def _publish(self, now: float) -> None:
        block = self._block
        block[counters.HEARTBEAT] = int(now * 1e9)
        block[counters.HELD] = self._engine.held
        block[counters.QUEUED] = self._service.queued
        block[counters.ACCEPT_PAUSES] = self._engine.accept_pauses
        if self._log_writer is not None:
            block[counters.LOG_DROPPED] = self._log_writer.dropped

    def _receive(self) -> None:
        for _ in range(MESSAGES):
            if self.done.is_set():
                return
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._loop.remove_reader(self._channel.fileno())
                self.end()
                return
            self._obey(*received)

    def _obey(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Apply):
            self._spec, self._drain = WorkerSpec.from_file(descriptors[0]), None
            sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[1:]]
            self._service.apply(self._spec, message.addresses, sockets)
        elif isinstance(message, Drain):
            self.drain(message)
        elif isinstance(message, Stop):
            self.end()
        elif isinstance(message, Resolved):
            self._service.upstreams.resolved(message.host, message.addresses)
        elif isinstance(message, Checked):
            host, port = message.host, message.port
            self._service.upstreams.health((host, port, 0, 0) if ":" in host else (host, port), message.up)
        elif isinstance(message, Barred):
            self._service.upstreams.bar([parse_hostport(text, allow_name=False) for text in message.addresses])
        elif isinstance(message, AllUp):
            self._service.upstreams.all_up()

    def _report(self, hosts: list[str]) -> None:
        with contextlib.suppress(OSError, ChannelFull):  # another connection will fail, and say so again
            self._channel.send(Failing(tuple(hosts)))


class ChannelHandler(logging.Handler):
    """Sends the worker's log records to the supervisor, which writes the service log. Never waits."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()[:2000]
        trace = "".join(traceback.format_exception(*record.exc_info))[-20000:] if record.exc_info else ""
        with contextlib.suppress(OSError, ChannelFull, ValueError):
            self._channel.send(Log(record.levelname.lower(), record.name, text, trace))


async def serve(channel: Channel, spec: WorkerSpec, addresses: Sequence[str], descriptors: list[int]) -> None:
    """Run a worker until it is done."""
    layout = Layout(*spec.slots, len(OUTCOMES), len(spec.source_addresses) + 1)
    table = Table(descriptors[0], spec.limits, layout)
    rates = RateTable(descriptors[1], spec.rates)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[2:]]
    worker = Worker(asyncio.get_running_loop(), channel, spec, table, rates)
    worker.start(addresses, sockets)
    # What exists now stays: the collector need not look at it again, and the pages stay shared.
    gc.collect()
    gc.freeze()
    await worker.done.wait()


def main() -> int:
    """`python -m relay.worker DESCRIPTOR`: started by the supervisor only."""
    process.open_missing()
    # A service manager's SIGTERM may reach every process of the unit; the supervisor decides what it means, and holds
    # these signals while it starts a worker, so that none arrives before this.
    for number in process.HELD:
        signal.signal(number, signal.SIG_IGN)
    process.release()
    faulthandler.enable()  # the supervisor aborts a worker that hangs
    mark_output()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    received = channel.receive() if channel.wait(START_TIMEOUT) else None
    if received is None:
        return 0
    message, descriptors = received
    if not isinstance(message, Start):
        raise SystemExit(f"relay.worker: expected a start message, got {message.kind}")
    spec = WorkerSpec.from_file(descriptors.pop(0))
    root = logging.getLogger()
    root.addHandler(ChannelHandler(channel))
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Connections are freed by their last reference (engines break their cycles); the collector only guards the rest.
    gc.set_threshold(10_000, 20, 50)
    try:
        loop = make_loop(spec.engine)
    except OSError as error:
        logger.error("no event loop for the %s engine: %s", spec.engine, error)
        return 1
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve(channel, spec, message.addresses, descriptors))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
