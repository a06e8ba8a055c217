"""Messages to the service manager: relay's state, and the watchdog's keep-alive pings. sd_notify(3) in Python.

`Notifier` sends messages, `Reporter` decides when. Without NOTIFY_SOCKET in the environment both do nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

MAX_STATUS = 500  # characters; `systemctl status` shows one line
INTERVAL = 5.0  # seconds between two updates while the service is up
INTERVAL_CHANGING = 1.0  # seconds between two updates while it starts or stops
SUPERSEDED = {"READY": ("RELOADING", "MONOTONIC_USEC"), "RELOADING": ("READY",)}  # unsent fields that a state replaces
PINGS = 4  # watchdog pings per watchdog timeout: a machine that its host pauses misses some
GRACE = 30.0  # seconds that a stop may take after the drain: stop the workers, kill those left, write the log out


class Notifier:
    """Sends messages to the service manager, sd_notify(3). Never blocks, never raises.

    Removes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from `environ`, so that child processes cannot notify in
    relay's name. Fields that cannot be sent now are sent with the next message. `problem` says why the last message
    did not arrive, or is empty.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.problem = ""
        self.watchdog_seconds = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        path = environ.pop("NOTIFY_SOCKET", "")
        self._address: bytes | None = None
        self._unsent: dict[str, str] = {}
        self._state = ""  # READY, RELOADING or STOPPING: the last one reported
        if path.startswith(("/", "@")):
            # "@" stands for the NUL byte of an abstract address, unix(7).
            self._address = b"\0" + os.fsencode(path[1:]) if path.startswith("@") else os.fsencode(path)
        elif path:
            self.problem = f"NOTIFY_SOCKET is {path!r}, neither a path nor an abstract address"

    @property
    def active(self) -> bool:
        """Whether there is a service manager to notify."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The service has started, or a reload is over."""
        self._state = "READY"
        self._send(READY="1", **_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(**_status(text))

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it. Not reported while the service starts or stops."""
        if self._state == "READY":
            self._state = "RELOADING"
            # By this time Type=notify-reload distinguishes the reload that it requested from an earlier one.
            self._send(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def reloaded(self, status: str = "") -> None:
        """The reload is over, whether it succeeded or failed."""
        if self._state == "RELOADING":
            self.ready(status)

    def stopping(self, status: str = "") -> None:
        """The service begins to stop, by itself or on request."""
        self._state = "STOPPING"
        self._send(STOPPING="1", **_status(status))

    def watchdog(self) -> None:
        """Send a keep-alive ping, due more often than every `watchdog_seconds` (0.0: the watchdog is off)."""
        if self.watchdog_seconds:
            self._send(WATCHDOG="1")

    def extend_timeout(self, seconds: float) -> None:
        """Allow the start or stop `seconds` more from now on; the unit's own timeout is never shortened."""
        self._send(EXTEND_TIMEOUT_USEC=str(max(1, int(seconds * 1e6))))

    def _send(self, **fields: str) -> None:
        if self._address is None:
            return
        # A message has one state: a new one replaces an earlier state that has not been sent yet.
        for name in SUPERSEDED.get(next(iter(fields)), ()):
            self._unsent.pop(name, None)
        self._unsent.update(fields)
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items()).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message, socket.MSG_NOSIGNAL, self._address)
        except OSError as error:  # the socket's queue is full; or the manager is gone, and may come back
            self.problem = f"NOTIFY_SOCKET: {os.strerror(error.errno) if error.errno else error}"
        else:
            self.problem = ""
            self._unsent.clear()


def _status(text: str) -> dict[str, str]:
    # A line break would start another field.
    return {"STATUS": " ".join(text.split())[:MAX_STATUS]} if text else {}


def _watchdog(microseconds: str, pid: str) -> float:
    """The watchdog timeout in seconds, sd_watchdog_enabled(3); 0.0 if it is off, or meant for another process."""
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6


class ServiceStatus(NamedTuple):
    """The service's state, as far as the manager is concerned.

    `serving`: every worker accepts; `alive`: the event loop of every running worker answers. `ends_in`: seconds left
    of a drain after which the process ends, else None. `text`: the line for `systemctl status`.
    """

    serving: bool
    alive: bool
    ends_in: float | None
    text: str


class Reporter:
    """Reports readiness, stop and status text to the manager, as `status()` returns them.

    Pings come from the supervisor's event loop, so they stop when it hangs. They also stop while a worker hangs: the
    supervisor replaces a hung worker long before the manager acts, unless it cannot.
    """

    def __init__(self, notifier: Notifier, status: Callable[[], ServiceStatus]) -> None:
        self._notifier = notifier
        self._status = status
        self._ready = self._stopping = False
        self._text = ""
        self._alive = False

    def update(self) -> float:
        """Report what has changed. Returns the seconds until the next update."""
        status, notifier = self._status(), self._notifier
        text = status.text if status.text != self._text else ""  # empty: unchanged
        self._text = status.text
        self._alive = status.alive
        if status.ends_in is not None:
            if not self._stopping:
                self._stopping = True
                notifier.stopping(text)
            elif text:
                notifier.status(text)
            notifier.extend_timeout(status.ends_in + GRACE)
        elif status.serving and not self._ready:
            self._ready = True
            notifier.ready(text)
        elif text:
            notifier.status(text)
        wait = INTERVAL_CHANGING if self._stopping or not self._ready else INTERVAL
        return min(wait, notifier.watchdog_seconds / PINGS) if notifier.watchdog_seconds else wait

    async def run(self) -> None:
        """Report and ping periodically until cancelled. Returns at once if there is no manager."""
        while self._notifier.active:
            wait = self.update()
            if self._alive:
                self._notifier.watchdog()
            await asyncio.sleep(wait)
