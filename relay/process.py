"""The first steps of every relay process: it opens missing standard descriptors and blocks signals.

This module imports next to nothing, because it has to run before anything that takes time or opens a file.

A signal that arrives while a process is still starting would end it (SIGHUP), or be lost if it is PID 1: the kernel
drops signals for which the first process of a PID namespace has no handler (signal(7), pid_namespaces(7)). So all
signals that relay handles are blocked until the handlers are in place. Blocked signals stay pending in the kernel, also
for PID 1 and across execve(2). Unprotected is only the start of the interpreter, about 20 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

STANDARD = ("standard input", "standard output", "standard error")

# Signals that relay handles: docs/operations.md, "Signals".
SERVED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals that relay does not use, and that would end a process. Not among them, because their default action is wanted:
# signals that stop a process (SIGTSTP), report its own fault (SIGSEGV, SIGSYS), or ask for a trace or a core dump
# (SIGABRT, SIGQUIT, SIGXCPU). The C library reserves 32 and 33, which cannot be handled or blocked (nptl(7)).
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
    """Block signals and open missing standard descriptors; returns the names of the descriptors that were closed.

    This is the first statement of every relay program. `release` unblocks the signals.
    """
    hold()
    # A parent that ignores SIGCHLD passes that on, and the exit status of every child would be lost (wait(2), Notes).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return open_missing()


def open_missing() -> list[str]:
    """Open /dev/null for each of descriptors 0, 1 and 2 that is closed; returns their names.

    Otherwise the next file, socket or shared memory would get the number, and log lines would be written into it.
    """
    missing = []
    for descriptor, name in enumerate(STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            missing.append(name)
            # open(2) takes the lowest free number, which is this one, since all below are open by now.
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:  # a chroot without devices: reads and writes will fail, which loses only log lines
                os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            os.set_inheritable(descriptor, True)
            _make_stream(descriptor)
    return missing


def _make_stream(descriptor: int) -> None:
    """Make the stream in `sys` for a descriptor that was closed when Python started; it is None then.

    Otherwise `print(file=None)` would write text for standard error to standard output, and faulthandler would raise.
    """
    if descriptor == 0:
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - not a path, stays
    elif descriptor == 1:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - the same
    else:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - the same


def hold() -> None:
    """Block the signals that relay handles or ignores, in this thread and in the threads that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def release() -> None:
    """Unblock all signals, including those that were blocked when this process was started."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block signals while a child process is started: it inherits the mask, so that no signal ends it too early.

    Do not nest it, and do not use it while signals are blocked already: its end unblocks all of them.
    """
    hold()
    try:
        yield
    finally:
        release()


def signal_name(number: int) -> str:
    """The name of a signal, also of real-time signals such as SIGRTMIN+3, which `signal.Signals` does not have.

    For signals 32 and 33, which the C library reserves, it is the number.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else str(number)


def return_memory() -> None:
    """Give freed memory back to the kernel, malloc_trim(3), where the C library has it; takes some milliseconds.

    After large settings: what their parser has freed would else stay with the process.
    """
    import ctypes  # not where a process starts: it takes longer to import than all of this module

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
