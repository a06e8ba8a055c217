"""A worker process: client traffic, and nothing else.

It is started with one descriptor, its end of the control channel, and gets everything else through it. Its loop ticks a
few times a second: the tick is its heartbeat, looks at deadlines, and publishes its gauges. It ends when it is told to,
or when the supervisor is gone: traffic that nobody watches would be worse than none, and systemd starts a new relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback

from relay import connection, steps
from relay.access_log import AccessLog
from relay.account import Ledger
from relay.admit import Admission, SourceHash
from relay.control import Channel, ChannelFull, Checked, Drain, Failing, Log, Message, Ready, Resolved, Start, Stop
from relay.core import counters
from relay.core.access import AccessList
from relay.core.balance import Balance
from relay.core.counters import Layout
from relay.engines.choice import make_engine, make_loop
from relay.engines.contract import Engine
from relay.logs import LogWriter
from relay.outcome import OUTCOMES
from relay.pacing import Pacer
from relay.rate_table import RateTable
from relay.refusals import RefusalLog
from relay.sniff import Gate
from relay.sources import Sources
from relay.spec import ListenerSpec, WorkerSpec
from relay.table import Table
from relay.upstreams import Upstreams

TICK = 0.5  # seconds; waking a processor that sleeps is what silent connections cost
LOG_FLUSH = 1.0  # seconds that the end waits for the last access lines
STDOUT = 1
START_TIMEOUT = 30.0  # seconds; the supervisor sends the start message before the process exists


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
        self._deadline: float | None = None  # of the drain
        self._expected_tick = 0.0
        self._ticking = False  # the engine has more to look at, and is about to be asked to
        self.done = asyncio.Event()
        clock = time.monotonic
        self._clock = clock
        self.engine: Engine = make_engine(
            spec.engine,
            loop,
            spec.timeouts,
            spec.tcp,
            report_source=spec.access_log,
            held_limit=spec.held_bytes,
        )
        self._access_log: RefusalLog | None = None
        if self._log_writer is not None:
            write = self._log_writer.write
            self._access_log = RefusalLog(
                AccessLog(write, spec.upstreams, spec.log_format), write, spec.log_format, clock
            )
        names = [listener.name for listener in spec.listeners]
        self._ledger = Ledger(self._block, table.layout, names, spec.upstreams, clock, self._access_log)
        source_hash = None
        if spec.limits.per_source or spec.rates.source.per_second:
            key = bytes.fromhex(spec.source_key)
            source_hash = SourceHash(key, spec.source_prefix_v4, spec.source_prefix_v6)
        access = None
        if spec.access_allow or spec.access_deny:
            access = AccessList(spec.access_allow, spec.access_deny)
        self._sources = Sources(spec.source_addresses, spec.source_ports, table.layout, table.blocks, spec.index)
        self._upstreams = Upstreams(
            Balance(spec.eject_after, spec.eject_seconds), self._sources, spec.connect_timeout, self._report
        )
        buckets = rates.rates(alone=spec.limits.workers == 1)
        limited = spec.rates.source.per_second or spec.rates.accept.per_second
        self._admission = Admission(table.limits(spec.index), source_hash, access, buckets if limited else None)
        self._pacer: Pacer[connection.Connection] | None = None
        if spec.rates.dial.per_second:
            turn = functools.partial(steps.late, found=steps.Found.TURN)
            self._pacer = Pacer(buckets, loop, time.monotonic_ns, turn)

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept on the listening sockets, in the listeners' order; begin to tick."""
        remaining = iter(sockets)
        for index, listener in enumerate(self._spec.listeners):
            frontend = connection.Frontend(
                index=index,
                name=listener.name,
                admission=self._admission,
                gate=self._gate(listener),
                send_proxy=listener.send_proxy,
                local_address=self.engine.local_address,
                route=self._upstreams.route(listener.upstreams),
                balance=self._upstreams.balance,
                sources=self._sources,
                pacer=self._pacer,
                perform=self.engine.perform,
                ledger=self._ledger,
                clock=self._clock,
            )
            for _ in range(listener.sockets):
                self.engine.listen(next(remaining), _acceptor(frontend))
        self._expected_tick = self._clock()
        self._tick()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        self._channel.send(Ready(os.getpid()))

    def _gate(self, listener: ListenerSpec) -> Gate | None:
        if not listener.sni and listener.proxy_protocol == "off":
            return None
        return Gate(listener.sni, self._spec.client_hello_timeout, listener.proxy_protocol)

    def drain(self, window: float) -> None:
        """Stop accepting; end when the last connection has, or after `window` seconds."""
        self.engine.stop_listening()
        self._deadline = self._clock() + window
        self._tick_drain(self._clock())

    def end(self) -> None:
        """Close everything, now."""
        self.engine.close()
        self._publish(self._clock())
        if self._access_log is not None and self._log_writer is not None:
            self._access_log.flush()
            self._log_writer.flush(LOG_FLUSH)
            self._block[counters.LOG_DROPPED] = self._log_writer.dropped
        self.done.set()

    def _tick(self) -> None:
        now = self._clock()
        self._block[counters.LAG] = int(max(0.0, now - self._expected_tick) * 1e9)
        if not self._ticking:
            self._tick_engine()
        self._publish(now)
        if self._access_log is not None:
            self._access_log.tick(now)
        if self._deadline is not None:
            self._tick_drain(now)
        if not self.done.is_set():
            self._expected_tick = now + TICK
            self._loop.call_later(TICK, self._tick)

    def _tick_engine(self) -> None:
        """Let the engine look at its deadlines, again after the others' turn until it has seen everything."""
        self._ticking = not self.done.is_set() and self.engine.tick(self._clock())
        if self._ticking:
            self._loop.call_soon(self._tick_engine)

    def _tick_drain(self, now: float) -> None:
        if self._deadline is None or self.done.is_set():
            return
        if not self.engine.connections or now >= self._deadline:
            self.end()

    def _publish(self, now: float) -> None:
        block = self._block
        block[counters.HEARTBEAT] = int(now * 1e9)
        block[counters.HELD] = self.engine.held
        block[counters.QUEUED] = len(self._pacer) if self._pacer is not None else 0
        block[counters.ACCEPT_PAUSES] = self.engine.accept_pauses
        if self._log_writer is not None:
            block[counters.LOG_DROPPED] = self._log_writer.dropped

    def _receive(self) -> None:
        while not self.done.is_set():
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._loop.remove_reader(self._channel.fileno())
                self.end()
                return
            self._obey(received[0])

    def _obey(self, message: Message) -> None:
        if isinstance(message, Drain):
            self.drain(message.window)
        elif isinstance(message, Stop):
            self.end()
        elif isinstance(message, Resolved):
            self._upstreams.resolved(message.host, message.addresses)
        elif isinstance(message, Checked):
            host, port = message.host, message.port
            self._upstreams.health((host, port, 0, 0) if ":" in host else (host, port), message.up)

    def _report(self, hosts: list[str]) -> None:
        with contextlib.suppress(OSError, ChannelFull):  # another connection will fail, and say so again
            self._channel.send(Failing(tuple(hosts)))


def _acceptor(frontend: connection.Frontend) -> connection.Acceptor:
    return functools.partial(connection.accept, frontend)


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


async def serve(channel: Channel, spec: WorkerSpec, descriptors: list[int]) -> None:
    """Run a worker until it is done."""
    layout = Layout(len(spec.listeners), len(spec.upstreams), len(OUTCOMES), len(spec.source_addresses) + 1)
    table = Table(descriptors[0], spec.limits, layout)
    rates = RateTable(descriptors[1], spec.rates)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[2:]]
    worker = Worker(asyncio.get_running_loop(), channel, spec, table, rates)
    worker.start(sockets)
    # What exists now stays: the collector need not look at it again, and the pages stay shared.
    gc.collect()
    gc.freeze()
    await worker.done.wait()


def main() -> int:
    """`python -m relay.worker DESCRIPTOR`: started by the supervisor only."""
    # A service manager's SIGTERM may reach every process of the unit; the supervisor decides what it means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
    root.setLevel(logging.DEBUG if spec.debug else logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Connections are freed by their last reference (engines break their cycles); the collector only guards the rest.
    gc.set_threshold(10_000, 20, 50)
    try:
        loop = make_loop(spec.engine)
    except OSError as error:
        logger.error("no event loop for the %s engine: %s", spec.engine, error)
        return 1
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve(channel, spec, descriptors))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
