"""Messages to the service manager: what relay is doing, and that it is alive. sd_notify(3) in Python.

`Notifier` sends them, `Reporter` decides when. Without a manager that listens there is nothing in the environment, and
all of it does nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

MOST_STATUS = 500  # characters; `systemctl status` shows one line
LOOK = 5.0  # seconds between two looks while nothing happens
LOOK_OFTEN = 1.0  # seconds, while it starts or ends
OTHERS = {"READY": ("RELOADING", "MONOTONIC_USEC"), "RELOADING": ("READY",)}
PINGS = 4  # life signs in the time after which the manager acts: a machine that is paused by its host misses some
GRACE = 30.0  # seconds that an end may take beyond the drain: workers told, then killed, the log written out


class Notifier:
    """Messages to the service manager, sd_notify(3). Never waits, never raises.

    Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of `environ`: what relay starts must not speak for it. What
    cannot be sent now is sent with the next message. `problem` says why the last one did not arrive, or is empty.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.problem = ""
        self.watchdog_seconds = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        path = environ.pop("NOTIFY_SOCKET", "")
        self._address: bytes | None = None
        self._unsent: dict[str, str] = {}
        self._said = ""  # READY, RELOADING, STOPPING: the last of them
        if path.startswith(("/", "@")):
            # The manager's name for an abstract address, unix(7).
            self._address = b"\0" + os.fsencode(path[1:]) if path.startswith("@") else os.fsencode(path)
        elif path:
            self.problem = f"NOTIFY_SOCKET is {path!r}, neither a path nor an abstract address"

    @property
    def active(self) -> bool:
        """Whether there is somebody to tell."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The service serves, or serves again."""
        self._said = "READY"
        self._send(READY="1", **_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(**_status(text))

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it. While starting or stopping there is nothing to be told of one."""
        if self._said == "READY":
            self._said = "RELOADING"
            # Type=notify-reload tells a reload that it asked for from an earlier one by this time.
            self._send(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def reloaded(self, status: str = "") -> None:
        """It is over, well or not."""
        if self._said == "RELOADING":
            self.ready(status)

    def stopping(self, status: str = "") -> None:
        """The service is about to end, on its own account or because it was told to."""
        self._said = "STOPPING"
        self._send(STOPPING="1", **_status(status))

    def watchdog(self) -> None:
        """A life sign, to be given more often than every `watchdog_seconds` (0.0: nobody waits for any)."""
        if self.watchdog_seconds:
            self._send(WATCHDOG="1")

    def extend_timeout(self, seconds: float) -> None:
        """The start or the stop may take so long from now on; what the unit allows is never shortened."""
        self._send(EXTEND_TIMEOUT_USEC=str(max(1, int(seconds * 1e6))))

    def _send(self, **fields: str) -> None:
        if self._address is None:
            return
        # A state takes back the one before, if that has not been said yet: a message has one.
        for name in OTHERS.get(next(iter(fields)), ()):
            self._unsent.pop(name, None)
        self._unsent.update(fields)
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items()).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message, socket.MSG_NOSIGNAL, self._address)
        except OSError as error:  # its queue is full; or it is gone, and may come back
            self.problem = f"NOTIFY_SOCKET: {os.strerror(error.errno) if error.errno else error}"
        else:
            self.problem = ""
            self._unsent.clear()


def _status(text: str) -> dict[str, str]:
    # A line break would begin another field.
    return {"STATUS": " ".join(text.split())[:MOST_STATUS]} if text else {}


def _watchdog(microseconds: str, pid: str) -> float:
    """Seconds, sd_watchdog_enabled(3); 0.0 if it is off, or for another process."""
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6


class Look(NamedTuple):
    """What there is to say now.

    `serving`: every worker accepts; `alive`: the loop of each that runs answers. `ends_in`: seconds to the end of a
    drain after which the process ends, else None.
    """

    serving: bool
    alive: bool
    ends_in: float | None
    text: str


class Reporter:
    """Says when the service is ready, stops, and how it is. `look` is asked for it.

    Life signs come from the supervisor's own loop, so that they end when it hangs, and they end while a worker hangs:
    the supervisor replaces that one long before the manager does anything, unless it cannot.
    """

    def __init__(self, notifier: Notifier, look: Callable[[], Look]) -> None:
        self._notifier = notifier
        self._look = look
        self._ready = self._stopping = False
        self._text = ""
        self._alive = False

    def update(self) -> float:
        """Say what has changed; seconds until there may be more to say."""
        look, notifier = self._look(), self._notifier
        news = look.text if look.text != self._text else ""
        self._text = look.text
        self._alive = look.alive
        if look.ends_in is not None:
            if not self._stopping:
                self._stopping = True
                notifier.stopping(news)
            elif news:
                notifier.status(news)
            notifier.extend_timeout(look.ends_in + GRACE)
        elif look.serving and not self._ready:
            self._ready = True
            notifier.ready(news)
        elif news:
            notifier.status(news)
        often = self._stopping or not self._ready
        wait = LOOK_OFTEN if often else LOOK
        return min(wait, notifier.watchdog_seconds / PINGS) if notifier.watchdog_seconds else wait

    async def run(self) -> None:
        """Look now and then, and give life signs, until cancelled. Without a manager it ends at once."""
        while self._notifier.active:
            wait = self.update()
            if self._alive:
                self._notifier.watchdog()
            await asyncio.sleep(wait)
