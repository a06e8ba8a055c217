"""`relay drain`, `relay undrain` and `relay reload`: send an order to a running relay through its admin port.

Each command reports only what the relay has answered, and returns 0 only if the answer confirms the order.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from relay.commands.admin_client import Refused, Unreachable, fetch, post
from relay.commands.format import duration
from relay.supervisor.admin.status_schema import RelayStatus

POLL = 0.5  # seconds between two requests for the state of a drain
SILENCE = 30.0  # seconds that a draining relay may leave requests unanswered while its port is open


def drain(admin: str, *, wait: bool) -> int:
    """Begin a drain; with `wait`, follow it until it is over. Returns the exit status."""
    try:
        answer = post(admin, "/drain", accepted=202)
        state = answer.table()
        if "phase" not in state or "ends" not in state:
            raise answer.unexpected()
    except (Unreachable, Refused) as error:
        return _fail(str(error))
    print("draining", flush=True)
    return _Follower(admin, state).run() if wait else 0


def undrain(admin: str) -> int:
    """Put the relay back into service. Returns the exit status."""
    try:
        answer = post(admin, "/undrain")
        if answer.text != "ok":
            raise answer.unexpected()
    except (Unreachable, Refused) as error:
        return _fail(f"not put back into service: {error}")
    print("serving")
    return 0


def reload(admin: str) -> int:
    """Make the relay read its settings again. Returns the exit status."""
    try:
        answer = post(admin, "/reload")
        if answer.text != "ok":
            raise answer.unexpected()
    except Unreachable as error:
        return _fail(str(error))
    except Refused as error:
        for line in str(error).splitlines():
            _fail(f"not reloaded: {line}")
        return 1
    print("reloaded")
    return 0


class _Follower:
    """Prints the progress of a drain until it is over. `state` is the relay's answer to the order."""

    def __init__(self, admin: str, state: dict[str, Any]) -> None:
        self._admin = admin
        self._ends = bool(state["ends"])
        self._pid: int | None = None
        self._active: int | None = None  # connections, when the relay last answered
        self._shown = ""
        self._terminal = sys.stdout.isatty()

    def run(self) -> int:
        """Follow the drain. Returns 0 once the relay is drained, and 1 if the drain ends in another way."""
        answered = time.monotonic()
        while True:
            try:
                status = fetch(self._admin)
            except Unreachable as error:
                if error.gone:
                    return self._gone()
                if time.monotonic() - answered > SILENCE:
                    return self._fail(str(error))
            else:
                answered = time.monotonic()
                if (result := self._update(status)) is not None:
                    return result
            time.sleep(POLL)

    def _update(self, status: RelayStatus) -> int | None:
        """Print the progress in `status`; return the exit status once the drain is over, else None."""
        state, pid = status["drain"], status["pid"]
        if self._pid not in (None, pid):
            return self._fail(f"the relay has ended, and another one (pid {pid}) serves in its place")
        if state is None:
            return self._fail("put back into service meanwhile")
        self._pid, self._active, self._ends = pid, status["connections"]["active"], state["ends"]
        line = f"{state['phase']}: {self._active} connections, {duration(state['seconds_left'])} left"
        if self._terminal:
            print(f"\r{line:60s}", end="", flush=True)
        elif state["phase"] != self._shown:
            print(line, flush=True)
        self._shown = state["phase"]
        if state["phase"] != "drained":
            return None
        self._new_line()
        return 0

    def _gone(self) -> int:
        """The exit status for a relay that is no longer there.

        It has drained if its drain was to end the process, or if it had no connections left. Any other relay may have
        been killed with all of its connections.
        """
        if self._ends or self._active == 0:
            self._new_line()
            print("ended")
            return 0
        left = "" if self._active is None else f"; {self._active} connections when it last answered"
        return self._fail(f"the relay ended before it was drained{left}")

    def _fail(self, text: str) -> int:
        self._new_line()
        return _fail(text)

    def _new_line(self) -> None:
        if self._terminal and self._shown:
            print()


def _fail(text: str) -> int:
    print(f"relay: {text}", file=sys.stderr)
    return 1
