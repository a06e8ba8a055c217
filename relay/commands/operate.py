"""`relay drain`, `relay undrain` and `relay reload`: tell a running relay what to do through its admin port.

Each reports what the relay answered, and nothing that it did not: 0 only for an answer that says that it is done.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from relay.commands.admin_client import Refused, Unreachable, fetch, order
from relay.commands.format import duration

LOOK = 0.5  # seconds between two looks at a drain
SILENCE = 30.0  # seconds for which a relay that drains may give no answer, with its port still open


def drain(admin: str, *, wait: bool) -> int:
    """Drain; with `wait` until that is over. The exit status."""
    try:
        answer = order(admin, "/drain", accepted=202)
        state = answer.table()
        if "phase" not in state or "ends" not in state:
            raise answer.unexpected()
    except (Unreachable, Refused) as error:
        return _fail(str(error))
    print("draining", flush=True)
    return _Follower(admin, state).run() if wait else 0


def undrain(admin: str) -> int:
    """Put it back into service. The exit status."""
    try:
        answer = order(admin, "/undrain")
        if answer.text != "ok":
            raise answer.unexpected()
    except (Unreachable, Refused) as error:
        return _fail(f"not put back: {error}")
    print("serving")
    return 0


def reload(admin: str) -> int:
    """Let it read its settings again. The exit status."""
    try:
        answer = order(admin, "/reload")
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
    """Shows how a drain goes until it is over. `state` is what the relay answered to the order."""

    def __init__(self, admin: str, state: dict[str, Any]) -> None:
        self._admin = admin
        self._ends = bool(state["ends"])
        self._pid: int | None = None
        self._active: int | None = None  # connections, when the relay was last seen
        self._shown = ""
        self._terminal = sys.stdout.isatty()

    def run(self) -> int:
        """Until it is drained, which is 0, or will not be: 1."""
        heard = time.monotonic()
        while True:
            try:
                status = fetch(self._admin)
            except Unreachable as error:
                if error.gone:
                    return self._gone()
                if time.monotonic() - heard > SILENCE:
                    return self._fail(str(error))
            else:
                heard = time.monotonic()
                if (result := self._look(status)) is not None:
                    return result
            time.sleep(LOOK)

    def _look(self, status: dict[str, Any]) -> int | None:
        """One look at it; the exit status once it is over."""
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
        """The relay is no longer there. One that was to end after its drain, or had nobody left, has drained; of any
        other it was not seen: it may have been killed with all of its connections."""
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
