"""What a worker says to the supervisor, read as if somebody else had taken the worker over.

A worker talks to the whole internet, the supervisor to nobody. So whatever comes over the control channel is checked
before it means anything: its form, its size, how much of it there is, and whether it is a worker's to say. A worker
that says what no worker says is killed, and so replaced. None can keep the supervisor from its other work: a turn takes
few messages, and one that always has more to say is heard for a tenth of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from relay.ipc.channel import Channel
from relay.ipc.messages import BadMessage, Failing, Log, Message, Ready
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import guarded

TURN = 16  # messages taken before others get their turn
SHARE = 9  # times as long as such a turn took, in which nothing more is taken
SHORTEST = 0.02  # seconds of such a pause
LAST_WORDS = 1000  # messages of a worker that has ended; the channel has room for some 280
FAILING_EVERY = 0.5  # seconds; a worker says it once a second
CLOSED_GRACE = 5.0  # seconds from the end of the channel to that of the process
LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
MOST_TEXT, MOST_NAME, MOST_TRACE = 2000, 100, 20_000  # characters of a log line: what `worker` sends at most
# Of a worker's log lines, characters: some thirty with a long traceback at once, then five short ones a second.
LOG_BURST, LOG_RATE = 600_000, 10_000
LINE = 200  # characters that a line takes at least
TELL_DROPPED = 5.0  # seconds from a log line that is dropped until that is told of


class Inbox:
    """Reads what one worker process sends over its channel.

    `ready` is called when it accepts connections, at most once; `failing` gets the hosts that it cannot connect to;
    `kill` gets the reason why it has to be killed. `log` is the service log, bound to the worker.
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
        self._timer: asyncio.TimerHandle | None = None  # until it is heard again, or is killed
        self._open = True
        self._said_ready = False
        self._failed_at = float("-inf")
        self._room = float(LOG_BURST)  # for log lines, characters
        self._room_at = time.monotonic()
        self._dropped = 0
        self._telling: asyncio.TimerHandle | None = None
        channel.refuse_descriptors()
        self._loop.add_reader(channel.fileno(), self._turn)

    def close(self) -> None:
        """The process has ended: take its last words."""
        if self._open:
            self._take(LAST_WORDS)
        self._leave()
        if self._telling is not None:
            self._telling.cancel()
            self._tell_dropped()

    def _turn(self) -> None:
        began = time.monotonic()
        if self._take(TURN) and self._open:
            self._loop.remove_reader(self._channel.fileno())
            pause = max(SHORTEST, SHARE * (time.monotonic() - began))
            self._timer = self._loop.call_later(pause, self._again)

    def _again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._channel.fileno(), self._turn)

    def _take(self, most: int) -> bool:
        """Take messages that are there; whether there may be more."""
        for _ in range(most):
            try:
                message = self._channel.hear()
            except BlockingIOError:
                return False
            except (BadMessage, OSError) as error:
                self._refuse(str(error))
                return False
            if message is None:
                self._leave()
                self._timer = self._loop.call_later(CLOSED_GRACE, self._kill, "closed its control channel")
                return False
            with guarded("a message from a worker", self._log):
                self._obey(message)
            if not self._open:
                return False
        return True

    def _obey(self, message: Message) -> None:
        if isinstance(message, Log):
            self._write(message)
        elif isinstance(message, Failing):
            now = time.monotonic()
            if now - self._failed_at >= FAILING_EVERY:
                self._failed_at = now
                self._failing(message.hosts)
        elif isinstance(message, Ready) and not self._said_ready:
            self._said_ready = True
            self._ready()
        else:
            self._refuse(f"{message.kind} is not what a worker says, or not twice")

    def _refuse(self, why: str) -> None:
        self._leave()
        self._log.error("bad message from worker", error=why)
        self._kill("sent a bad message")

    def _leave(self) -> None:
        """Read no more."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._channel.fileno())

    def _write(self, message: Log) -> None:
        """Into the service log, if this worker has not said too much."""
        text, name, trace = message.text[:MOST_TEXT], message.logger[:MOST_NAME], message.traceback[-MOST_TRACE:]
        now = time.monotonic()
        self._room = min(LOG_BURST, self._room + (now - self._room_at) * LOG_RATE)
        self._room_at = now
        size = LINE + len(text) + len(name) + len(trace)
        if size > self._room:
            self._dropped += 1
            if self._telling is None:
                self._telling = self._loop.call_later(TELL_DROPPED, self._tell_dropped)
            return
        self._room -= size
        write = getattr(self._log, message.level if message.level in LEVELS else "error")
        write(text, logger=name, **({"traceback": trace} if trace else {}))

    def _tell_dropped(self) -> None:
        self._telling = None
        dropped, self._dropped = self._dropped, 0
        self._log.warning("worker says too much for the log", lines_dropped=dropped)
