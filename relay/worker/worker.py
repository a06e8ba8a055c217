"""The worker process: it carries client traffic and does nothing else.

A worker is started with one descriptor, its end of the control channel, and receives everything else through it. Its
loop ticks a few times a second: each tick writes the heartbeat, checks deadlines, and publishes the gauges. The worker
ends when the supervisor sends `Stop`, or is gone: unsupervised traffic would be worse than none, and systemd starts a
new relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence

from relay.address import parse_hostport
from relay.core import counters
from relay.core.customers import CustomerTable
from relay.core.drain import AgePace, Pace
from relay.engines.contract import Event
from relay.ipc import memory
from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import AllUp, Apply, Barred, Checked, Drain, Failing, Message, Ready, Resolved, Stop
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import WorkerSpec
from relay.log_writer import LogWriter
from relay.worker.data_plane import DataPlane

TICK = 0.5  # seconds; not shorter, since each tick wakes a processor that sleeps while connections are idle
DRAIN_TICK = 0.1  # seconds
LOG_FLUSH = 1.0  # seconds, at most, to wait at the end for the last access lines
STDOUT = 1
MESSAGES_PER_TURN = 16  # from the supervisor, before the loop serves connections again

logger = logging.getLogger("relay.worker")


def received(spec: WorkerSpec, descriptors: list[int]) -> tuple[CustomerTable | None, list[socket.socket]]:
    """The customers' table, if there are customers, and the listening sockets of a message."""
    customers = CustomerTable(memory.mapped(descriptors.pop(0))) if spec.customers else None
    return customers, [socket.socket(fileno=descriptor) for descriptor in descriptors]


class Worker:
    """The life of one worker: start, serve, drain, end."""

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
        self._ticking = False  # the engine's tick is not finished: another call is scheduled
        self.done = asyncio.Event()
        self._clock = time.monotonic
        write = self._log_writer.write if self._log_writer is not None else None
        self._data_plane = DataPlane(loop, spec, table, rates, write, self._report_failing)
        self._engine = self._data_plane.engine

    def start(
        self, addresses: Sequence[str], sockets: list[socket.socket], customers: CustomerTable | None = None
    ) -> None:
        """Accept on the listening sockets, one for each address, and start to tick."""
        self._data_plane.apply(self._spec, addresses, sockets, customers)
        self._expected_tick = self._clock()
        self._tick()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        self._channel.send(Ready(os.getpid()))

    def drain(self, order: Drain) -> None:
        """Stop accepting, and close the established connections evenly over the window, oldest first."""
        draining, self._drain = self._drain is not None, order
        self._engine.stop_listening()
        now = self._clock()
        self._pace = Pace(self._engine.connections, now, order.closed_at)
        if not draining:
            self._tick_drain()

    def _tick_drain(self) -> None:
        order, now = self._drain, self._clock()
        if order is None or self.done.is_set():
            return
        if now >= order.over_at:
            self._engine.stop()
            return
        # Connections established during the drain are closed at the end of the window.
        count = self._pace.due(now) if now < order.closed_at else self._engine.connections
        if count:
            self._engine.close_gracefully(count, Event.DRAINED)
        self._loop.call_later(DRAIN_TICK, self._tick_drain)

    def end(self) -> None:
        """Close all connections now, and end the worker."""
        self._engine.close()
        self._publish(self._clock())
        if self._data_plane.access_log is not None and self._log_writer is not None:
            self._data_plane.access_log.flush()
            self._log_writer.flush(LOG_FLUSH)
            self._block[counters.LOG_DROPPED] = self._log_writer.dropped
        self.done.set()

    def _tick(self) -> None:
        now = self._clock()
        self._block[counters.LAG] = int(max(0.0, now - self._expected_tick) * 1e9)
        if not self._ticking:
            self._tick_engine()
        self._publish(now)
        if self._data_plane.access_log is not None:
            self._data_plane.access_log.tick(now)
        if self._data_plane.ages:
            self._tick_ages()
        if not self.done.is_set():
            self._expected_tick = now + TICK
            self._loop.call_later(TICK, self._tick)

    def _tick_engine(self) -> None:
        """Let the engine check its deadlines in portions; other callbacks run in between."""
        self._ticking = not self.done.is_set() and self._engine.tick(self._clock())
        if self._ticking:
            self._loop.call_soon(self._tick_engine)

    def _tick_ages(self) -> None:
        """Close connections that have reached their maximum age, at the pace of a drain and within its window."""
        waiting = self._engine.close_expired(0, Event.AGED)
        count = self._age_pace.due(self._engine.connections, waiting, TICK, self._spec.drain_window)
        if count:
            self._engine.close_expired(count, Event.AGED)

    def _publish(self, now: float) -> None:
        block = self._block
        block[counters.HEARTBEAT] = int(now * 1e9)
        block[counters.HELD] = self._engine.held
        block[counters.QUEUED] = self._data_plane.queued
        block[counters.ACCEPT_PAUSES] = self._engine.accept_pauses
        if self._log_writer is not None:
            block[counters.LOG_DROPPED] = self._log_writer.dropped

    def _receive(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
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
            self._handle(*received)

    def _handle(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Apply):
            self._spec, self._drain = WorkerSpec.from_file(descriptors[0]), None
            customers, sockets = received(self._spec, descriptors[1:])
            self._data_plane.apply(self._spec, message.addresses, sockets, customers)
        elif isinstance(message, Drain):
            self.drain(message)
        elif isinstance(message, Stop):
            self.end()
        elif isinstance(message, Resolved):
            self._data_plane.upstreams.resolved(message.host, message.addresses)
        elif isinstance(message, Checked):
            host, port = message.host, message.port
            address = (host, port, 0, 0) if ":" in host else (host, port)
            self._data_plane.upstreams.health(message.upstream, address, message.up)
        elif isinstance(message, Barred):
            self._data_plane.upstreams.bar([parse_hostport(text, allow_name=False) for text in message.addresses])
        elif isinstance(message, AllUp):
            self._data_plane.upstreams.all_up()

    def _report_failing(self, hosts: list[str]) -> None:
        with contextlib.suppress(OSError, ChannelFull):  # the next connection that fails reports it again
            self._channel.send(Failing(tuple(hosts)))
