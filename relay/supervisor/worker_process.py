"""One worker of the pool: its process, how that is started, and the backoff between starts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import relay
from relay.core.backoff import delay
from relay.ipc.channel import Channel, pair
from relay.ipc.messages import Start
from relay.ipc.outbox import Outbox
from relay.process import held
from relay.supervisor.inbox import Inbox
from relay.supervisor.instance import Instance

BACKOFF_FIRST, BACKOFF_LIMIT = 0.25, 30.0  # seconds
STEADY = 10.0  # seconds after which a worker's end is no early one, i.e. not part of a crash loop
LOOP = 3  # early ends in a row that make a crash loop
OOM_SCORE = 500  # added to a worker's oom_score_adj: it counts as larger than the supervisor by half of the memory
MOST_OOM_SCORE = 1000  # OOM_SCORE_ADJ_MAX, linux/oom.h
POLL = 0.1  # seconds between two polls of a process without a pidfd


def backoff(failures: int) -> float:
    """Seconds to wait before the start that follows `failures` early ends in a row: 0, 0, 0.5, 1, 2, … 30."""
    return 0.0 if failures < 2 else delay(failures, BACKOFF_FIRST, BACKOFF_LIMIT)


class Process:
    """A child process whose end can be awaited.

    asyncio's own starts a thread for each process (Python 3.11); where no thread can be started, as at a limit of
    tasks, the process runs on unknown. Here nothing can fail once the process is started.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:  # an older kernel, a container's seccomp profile, no descriptor left: poll instead
            self._pidfd = -1

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it; None while it is known to run."""
        return self._child.returncode

    async def wait(self) -> int:
        """Wait for the process to end; returns `returncode`."""
        if self._pidfd >= 0:
            await _readable(self._pidfd)
        # Polled without a pidfd, and with one too: a debugger may be notified before the parent is, ptrace(2).
        while (status := self._child.poll()) is None:  # noqa: ASYNC110 -- nobody could set an event
            await asyncio.sleep(POLL)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        self._child.send_signal(number)

    def kill(self) -> None:
        self._child.kill()


async def _readable(descriptor: int) -> None:
    """Wait until a descriptor is readable; return at once if the event loop cannot watch it."""
    loop = asyncio.get_running_loop()
    found = asyncio.Event()
    try:
        loop.add_reader(descriptor, found.set)
    except OSError:  # epoll_ctl(2): no memory, or too many watches of this user
        return
    try:
        await found.wait()
    finally:
        loop.remove_reader(descriptor)


@dataclass(slots=True)
class WorkerProcess:
    """One worker of the pool: the process that runs now, and the history of those before it.

    Only the pool that it belongs to changes it. Times are monotonic seconds.
    """

    index: int
    process: Process | None = None
    channel: Channel | None = None
    ready: bool = False  # accepts connections
    inbox: Inbox | None = None
    outbox: Outbox | None = None
    behind: bool = False  # does not read its channel; messages wait in the outbox
    started: float = 0.0
    unready_since: float = 0.0
    failures: int = 0  # starts that failed and early ends, in a row; the end of a longer life counts as the first
    restarts: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)  # starts the process, and its successors

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def launched(self, process: Process, channel: Channel) -> None:
        """A process has been started."""
        self.process, self.channel = process, channel
        self.restarts += self.started > 0
        self.started = time.monotonic()

    def not_launched(self) -> None:
        """A process could not be started."""
        self.failures += 1

    def ended(self) -> None:
        """The process has ended."""
        now = time.monotonic()
        self.process = self.channel = self.inbox = self.outbox = None
        self.behind = self.ready = False
        self.unready_since = now
        self.failures = self.failures + 1 if now - self.started < STEADY else 1

    def crash_looping(self, now: float) -> bool:
        """Whether there were LOOP `failures` in a row, and the present process has not run for STEADY seconds."""
        return self.failures >= LOOP and (self.process is None or now - self.started < STEADY)


def environment() -> dict[str, str]:
    """The environment of a worker: it imports the same relay as the supervisor, and nothing from the working directory.

    `-m` would put the working directory first on the path; PYTHONSAFEPATH (Python 3.11) prevents that. Where the
    supervisor itself runs from a source tree (`python -m relay` in it), PYTHONPATH names that tree.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    root = str(Path(relay.__file__).resolve().parent.parent)
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(root):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return environment


def goes_first(pid: int | str, proc: Path = Path("/proc")) -> str:
    """Raise a worker's OOM score: a worker that the kernel kills is replaced, a supervisor takes all workers with it.

    OOM_SCORE is added to the inherited value, so that OOMScoreAdjust= of a unit holds for both. The supervisor does it
    at the start, so that the score counts from the worker's first page on. Raising needs no privilege,
    proc_pid_oom_score_adj(5). Returns why it failed, or an empty string.
    """
    score = proc / str(pid) / "oom_score_adj"
    try:
        score.write_text(str(min(MOST_OOM_SCORE, int(score.read_text()) + OOM_SCORE)))
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def launch(instance: Instance, index: int) -> tuple[Process, Channel]:
    """Start worker number `index`; returns its process and the channel to it. Raises OSError."""
    ours, theirs = pair()
    channel = Channel(ours)
    try:
        # The message and its descriptors wait in the socket until the process reads it.
        orders = instance.worker_spec(index).to_file()
        try:
            listening = [sock.fileno() for sock in instance.worker_sockets(index)]
            addresses = tuple(binding.address for binding in instance.bindings())
            tables = [instance.table.descriptor, instance.rates.descriptor, *instance.worker_tables()]
            channel.send(Start(addresses), [orders, *tables, *listening])
        finally:
            os.close(orders)
        with held():  # signals stay blocked in the child until it ignores them
            child = subprocess.Popen(
                [sys.executable, "-m", "relay.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment(),
                # Ctrl-C is for the supervisor. A worker ignores SIGINT too, but only once its interpreter is up: until
                # then it would end with a traceback.
                start_new_session=True,
            )
    except BaseException:
        channel.close()
        raise
    finally:
        theirs.close()
    return Process(child), channel
