"""Reads a worker's messages to the supervisor, and trusts none of them: the worker may be compromised.

Workers talk to the whole internet, the supervisor to nobody. So each message on the control channel is checked for its
form, its size, its rate, and whether a worker may send it. A worker that sends any other message is killed, and so
replaced. No worker can keep the supervisor busy: a turn takes few messages, and a worker that always has more is read
for a tenth of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from relay.ipc.channel import Channel
from relay.ipc.messages import BadMessage, Failing, Log, Message, Ready
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import guarded

TURN = 16  # messages read in one turn of the event loop
PAUSE_FACTOR = 9  # a worker with more messages is then not read for this many times as long as its turn took
SHORTEST_PAUSE = 0.02  # seconds
REMAINING = 1000  # messages read at most after a worker's end; the channel has room for some 280
FAILING_EVERY = 0.5  # seconds between two Failing messages that count; a worker sends one a second
CLOSED_GRACE = 5.0  # seconds that a process may live after the end of its channel
LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
MOST_TEXT, MOST_NAME, MOST_TRACE = 2000, 100, 20_000  # characters of a log line: the most that a worker sends
# Token bucket for a worker's log lines, in characters and characters a second: some thirty lines with a long traceback
# at once.
LOG_BURST, LOG_RATE = 600_000, 10_000
LINE = 200  # characters that each line costs besides its text
REPORT_DROPPED = 5.0  # seconds from a dropped log line to the warning that counts them


class Inbox:
    """Reads what one worker process sends over its channel.

    `ready` is called at most once, when the worker accepts connections. `failing` gets the hosts that the worker cannot
    connect to. `kill` has to kill the worker, and gets the reason. `log` is the service log, bound to the worker.
    """

    def __init__(
        self,
        channel: Channel,
        ready: Callable[[], None],
        failing: Callable[[Sequence[str]], None],
        kill: Callable[[str], None],
        log: ServiceLog,
    ) -> None:
        self._channel = channel
        self._ready = ready
        self._failing = failing
        self._kill = kill
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # reads again after a pause, or kills the worker
        self._open = True
        self._was_ready = False
        self._failed_at = float("-inf")
        self._tokens = float(LOG_BURST)  # for log lines, as of `_tokens_at`
        self._tokens_at = time.monotonic()
        self._dropped = 0  # log lines since the last warning
        self._reporting: asyncio.TimerHandle | None = None
        channel.refuse_descriptors()
        self._loop.add_reader(channel.fileno(), self._read_turn)

    def close(self) -> None:
        """Read the remaining messages of a process that has ended."""
        if self._open:
            self._read(REMAINING)
        self._stop_reading()
        if self._reporting is not None:
            self._reporting.cancel()
            self._report_dropped()

    def _read_turn(self) -> None:
        began = time.monotonic()
        if self._read(TURN) and self._open:
            self._loop.remove_reader(self._channel.fileno())
            pause = max(SHORTEST_PAUSE, PAUSE_FACTOR * (time.monotonic() - began))
            self._timer = self._loop.call_later(pause, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._channel.fileno(), self._read_turn)

    def _read(self, most: int) -> bool:
        """Read and handle up to `most` messages; True if there may be more."""
        for _ in range(most):
            try:
                message = self._channel.hear()
            except BlockingIOError:
                return False
            except (BadMessage, OSError) as error:
                self._reject(str(error))
                return False
            if message is None:
                self._stop_reading()
                self._timer = self._loop.call_later(CLOSED_GRACE, self._kill, "closed its control channel")
                return False
            with guarded("a message from a worker", self._log):
                self._handle(message)
            if not self._open:
                return False
        return True

    def _handle(self, message: Message) -> None:
        if isinstance(message, Log):
            self._write(message)
        elif isinstance(message, Failing):
            now = time.monotonic()
            if now - self._failed_at >= FAILING_EVERY:
                self._failed_at = now
                self._failing(message.hosts)
        elif isinstance(message, Ready) and not self._was_ready:
            self._was_ready = True
            self._ready()
        else:
            self._reject(f"{message.kind} is no message of a worker, or came twice")

    def _reject(self, why: str) -> None:
        """Kill the worker for a message that it may not send."""
        self._stop_reading()
        self._log.error("bad message from worker", error=why)
        self._kill("sent a bad message")

    def _stop_reading(self) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._channel.fileno())

    def _write(self, message: Log) -> None:
        """Write a worker's line to the service log, or drop it if the worker is over its rate."""
        text, name, trace = message.text[:MOST_TEXT], message.logger[:MOST_NAME], message.traceback[-MOST_TRACE:]
        now = time.monotonic()
        self._tokens = min(LOG_BURST, self._tokens + (now - self._tokens_at) * LOG_RATE)
        self._tokens_at = now
        cost = LINE + len(text) + len(name) + len(trace)
        if cost > self._tokens:
            self._dropped += 1
            if self._reporting is None:
                self._reporting = self._loop.call_later(REPORT_DROPPED, self._report_dropped)
            return
        self._tokens -= cost
        write = getattr(self._log, message.level if message.level in LEVELS else "error")
        write(text, logger=name, **({"traceback": trace} if trace else {}))

    def _report_dropped(self) -> None:
        self._reporting = None
        dropped, self._dropped = self._dropped, 0
        self._log.warning("worker says too much for the log", lines_dropped=dropped)
