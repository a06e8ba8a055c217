"""`python -m relay.worker DESCRIPTOR`: the program of a worker process, which only the supervisor starts."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

from relay import process
from relay.core.counters import Layout
from relay.engines.choice import make_loop
from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import Log, Start
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.ipc.worker_spec import WorkerSpec
from relay.log_writer import mark_output
from relay.outcome import OUTCOMES, REFUSALS
from relay.worker.worker import Worker, received

START_TIMEOUT = 30.0  # seconds; ample, since the supervisor sends the start message before it starts the process

logger = logging.getLogger("relay.worker")


class ChannelHandler(logging.Handler):
    """Sends the worker's log records to the supervisor, which writes the service log. It never waits."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()[:2000]
        trace = "".join(traceback.format_exception(*record.exc_info))[-20000:] if record.exc_info else ""
        with contextlib.suppress(OSError, ChannelFull, ValueError):
            self._channel.send(Log(record.levelname.lower(), record.name, text, trace))


async def serve(channel: Channel, spec: WorkerSpec, addresses: Sequence[str], descriptors: list[int]) -> None:
    """Run a worker until it ends."""
    layout = Layout(*spec.slots[:2], len(OUTCOMES), len(spec.source_addresses) + 1, spec.slots[2])
    table = Table(descriptors[0], spec.limits, layout, len(REFUSALS))
    rates = RateTable(descriptors[1], spec.rates)
    customers, sockets = received(spec, descriptors[2:])
    worker = Worker(asyncio.get_running_loop(), channel, spec, table, rates)
    worker.start(addresses, sockets, customers)
    # All objects made so far live as long as the process: freeze them, so that the collector skips them and the pages
    # stay shared.
    gc.collect()
    gc.freeze()
    await worker.done.wait()


def main() -> int:
    """`python -m relay.worker DESCRIPTOR`: started by the supervisor only."""
    process.open_missing()
    # A service manager's SIGTERM may reach every process of the unit; only the supervisor acts on it. It blocks these
    # signals while it starts a worker, so that none arrives before they are ignored here.
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
