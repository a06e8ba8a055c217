"""One place in the pool of workers: the process that fills it, how one is started, and when the next one is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
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
OOM_SCORE = 500  # thousandths of the memory by which a worker counts as larger than the supervisor when that runs out
MOST_OOM_SCORE = 1000  # OOM_SCORE_ADJ_MAX, linux/oom.h
LOOK = 0.1  # seconds between two looks at a process whose end the kernel does not tell


def backoff(failures: int) -> float:
    """Seconds to wait before the start that follows `failures` early ends in a row: 0, 0, 0.5, 1, 2, … 30."""
    return 0.0 if failures < 2 else delay(failures, BACKOFF_FIRST, BACKOFF_LIMIT)


class Process:
    """A child process, and its end.

    Not asyncio's: that one starts a thread for each process (Python 3.11), and where it cannot, as at a limit of tasks,
    the process runs on and nobody knows of it. Once there is a process, nothing here can fail.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:  # an older kernel, a container's seccomp profile, no descriptor left: looked at now and then
            self._pidfd = -1

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal's number; None while it is not known to have ended."""
        return self._child.returncode

    async def wait(self) -> int:
        """Wait for its end; `returncode`."""
        if self._pidfd >= 0:
            await _readable(self._pidfd)
        # Where the kernel does not tell; and a debugger is told of the end before the parent, ptrace(2).
        while (status := self._child.poll()) is None:  # noqa: ASYNC110 -- nobody could set an event
            await asyncio.sleep(LOOK)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        self._child.send_signal(number)

    def kill(self) -> None:
        self._child.kill()


async def _readable(descriptor: int) -> None:
    """Wait until it is, or that cannot be told."""
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
    """One place in the pool and the process that fills it now."""

    index: int
    process: Process | None = None
    channel: Channel | None = None
    ready: bool = False
    inbox: Inbox | None = None
    outbox: Outbox | None = None
    behind: bool = False  # it was not reading, and has not been told everything
    started: float = 0.0
    unready_since: float = 0.0
    beat: int = 0  # its last heartbeat that was looked at
    beat_seen: float = 0.0  # when that was looked at first
    silent: float = 0.0  # seconds that its loop has been seen to be silent for
    failures: int = 0  # early ends in a row
    restarts: int = 0
    watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


def environment() -> dict[str, str]:
    """A worker imports the same relay as the supervisor, and nothing from the folder that this was started in.

    `-m` would put that folder first on the path (PYTHONSAFEPATH, Python 3.11, keeps it off). Only where the supervisor
    itself runs from a source tree (`python -m relay` in it) is that folder where relay is.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    root = str(Path(relay.__file__).resolve().parent.parent)
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(root):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return environment


def goes_first(pid: int | str, proc: Path = Path("/proc")) -> str:
    """Raise a child's OOM score: a worker that the kernel kills is replaced, a supervisor takes all with it.

    It is added to what the child has inherited, so that OOMScoreAdjust= of a unit holds for both. Done from here: a
    worker that is started while memory is short has to count from its first page on. Raising takes no privilege,
    proc_pid_oom_score_adj(5). Returns why it could not be done, or nothing.
    """
    score = proc / str(pid) / "oom_score_adj"
    try:
        score.write_text(str(min(MOST_OOM_SCORE, int(score.read_text()) + OOM_SCORE)))
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def launch(instance: Instance, index: int) -> tuple[Process, Channel]:
    """Start worker number `index`; its process, and the channel to it. Raises OSError."""
    ours, theirs = pair()
    channel = Channel(ours)
    try:
        # The message waits in the socket until the process reads it, its descriptors with it.
        orders = instance.worker_spec(index).to_file()
        try:
            listening = [sock.fileno() for sock in instance.worker_sockets(index)]
            addresses = tuple(binding.address for binding in instance.bindings())
            channel.send(Start(addresses), [orders, instance.table.descriptor, instance.rates.descriptor, *listening])
        finally:
            os.close(orders)
        with held():  # the child ignores them first of all
            child = subprocess.Popen(
                [sys.executable, "-m", "relay.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment(),
                # A terminal's Ctrl-C is for the supervisor. A worker ignores it as well, but not before its interpreter
                # has come that far, and would end with a traceback.
                start_new_session=True,
            )
    except BaseException:
        channel.close()
        raise
    finally:
        theirs.close()
    return Process(child), channel
