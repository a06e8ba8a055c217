"""What a process of relay does before anything else: standard descriptors, the signal mask.

Imports next to nothing, since it has to come before whatever takes time or opens a file.

A signal that arrives while a process is still starting would end it (SIGHUP), or, as PID 1, be lost: the kernel drops
what the first process of a PID namespace has no handler for (signal(7), pid_namespaces(7)). So everything that relay
gives a meaning is blocked until the handlers are in place; blocked signals wait in the kernel, also for PID 1 and over
execve(2). What remains is the interpreter's own start, some 20 ms before the first statement.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

STANDARD = ("standard input", "standard output", "standard error")

# Signals with a meaning: docs/operations.md, "Signals".
SERVED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals without one that would end a process. Left as they are: those that stop one (SIGTSTP), that report a fault of
# its own (SIGSEGV, SIGSYS), and those that ask for an end with a trace or a core dump (SIGABRT, SIGQUIT, SIGXCPU).
# Numbers 32 and 33 belong to the C library, which lets nobody handle or block them (nptl(7)).
IGNORED = tuple(
    number
    for number in sorted(signal.valid_signals())
    if number >= signal.SIGRTMIN
    or number
    in {
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGIO,
        signal.SIGPWR,
        signal.SIGSTKFLT,
    }
)
HELD = frozenset({*SERVED, *IGNORED})


def begin() -> list[str]:
    """Open missing standard descriptors, hold signals; the names of the descriptors that were closed.

    The first statement of every program of relay. `release` ends the holding.
    """
    hold()
    # A parent that ignores SIGCHLD hands that down, and the exit status of every child would be lost (wait(2), Notes).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return open_missing()


def open_missing() -> list[str]:
    """Open /dev/null for each of descriptors 0, 1 and 2 that is closed; their names.

    Otherwise the next file, socket or shared memory takes the number, and log lines are written into it.
    """
    missing = []
    for descriptor, name in enumerate(STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            missing.append(name)
            # open(2) takes the lowest free number, which is this one: those below are open by now.
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:  # a root directory without devices: reading and writing fail, which loses log lines only
                os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            os.set_inheritable(descriptor, True)
            _make_stream(descriptor)
    return missing


def _make_stream(descriptor: int) -> None:
    """Give Python a stream for a descriptor that was closed when it started; it has None there.

    `print(file=None)` would write to standard output what is meant for standard error, and faulthandler raises.
    """
    if descriptor == 0:
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - not a path, stays
    elif descriptor == 1:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - the same
    else:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - the same


def hold() -> None:
    """Block the signals that have a handler later, or that relay ignores, in this thread and those it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def release() -> None:
    """Block no signal at all, whatever the mask was that this process was started with."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals while a child process is started: it inherits the mask, and is not ended before it can ignore them.

    Not to be nested, and only where signals are not held otherwise.
    """
    hold()
    try:
        yield
    finally:
        release()


def signal_name(number: int) -> str:
    """SIGUSR2, SIGRTMIN+3: `signal.Signals` knows no real-time signals but the first and the last.

    The number, where there is no name at all: the C library has 32 and 33 for itself.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else str(number)
