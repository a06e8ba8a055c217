"""Runs drains: feeds orders and time to the state machine in `core.drain`, and carries its actions out.

SIGTERM, `relay drain` (POST /drain) and a cloud's event are all orders to the same machine. The workers close the
connections; the log has each phase.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from relay.core import drain
from relay.core.drain import Do, Event, Order, Phase, State
from relay.supervisor.service_log import ServiceLog

TICK = 0.1  # seconds between two steps of a drain under way
TOLD_TO_END = "the process was told to end, which undrain cannot take back"


class Workers(Protocol):
    """What a drainer needs of the worker pool."""

    def drain(self, closed_at: float, over_at: float) -> None:
        """Stop accepting; close connections evenly until `closed_at`, those left at `over_at` by force.

        Times are monotonic seconds.
        """

    def resume(self) -> None:
        """Accept again, at once. Raises StartError; then nothing has changed."""


class Drainer:
    """Runs the drains of this process.

    `active` counts the connections. `ended` is called when the process has to end, `finished` when the instance is
    drained and the process lives on.
    """

    def __init__(
        self,
        workers: Workers,
        active: Callable[[], int],
        ended: Callable[[], None],
        finished: Callable[[], None],
        log: ServiceLog,
    ) -> None:
        self._finished = finished
        self._workers = workers
        self._active = active
        self._ended = ended
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self.state = State()

    def begin(self, order: Order) -> None:
        """Begin a drain, or speed up the one under way."""
        before = self.state
        now = time.monotonic()
        actions = self._step(Event.BEGIN, now, order)
        if self.state != before:
            announce, window, _ = drain.split(order)
            self._log.info(
                "draining",
                reason=order.reason,
                announce_seconds=round(announce, 3),
                window_seconds=round(window, 3),
                connections=self._active(),
                ends=self.state.ends,
            )
        self._act(actions, now)

    def hurry(self) -> None:
        """End the process now."""
        self._act(self._step(Event.HURRY, time.monotonic()), time.monotonic())

    def undrain(self) -> str:
        """Return to service. Returns why that is refused, or an empty string; raises StartError if binding fails."""
        before = self.state
        after = self._withdraw(Event.UNDRAIN)
        if not after.draining:
            return ""
        if after.ends:
            return TOLD_TO_END
        assert before != after
        return f"{after.reason}: this drain began meanwhile, and goes on; undrain once more to end that as well"

    def call_off(self) -> None:
        """Withdraw a cloud's drain; return to service unless an operator's drain goes on. Raises StartError."""
        self._withdraw(Event.CALLED_OFF)

    def _withdraw(self, event: Event) -> State:
        """Step, and resume the workers before the new state is set. Awaits nothing, so no other event intervenes."""
        before, now = self.state, time.monotonic()
        after, actions = drain.step(before, event, now, None)
        if Do.RESUME in actions and before.phase is not Phase.ANNOUNCING:
            self._workers.resume()
        self.state = after
        self._act(actions, now)
        return after

    @property
    def drained(self) -> bool:
        return self.state.phase is Phase.DRAINED

    def _step(self, event: Event, now: float, order: Order | None = None) -> tuple[Do, ...]:
        self.state, actions = drain.step(self.state, event, now, order)
        return actions

    def _act(self, actions: tuple[Do, ...], now: float) -> None:
        state = self.state
        # Before any action, which may raise: without a timer a drain would never end.
        if state.phase is Phase.ENDED or not state.draining:
            self._stop_timer()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        for action in actions:
            if action is Do.CLOSE:
                window = state.left(now)
                self._log.info("closing connections", window_seconds=round(window, 3), connections=self._active())
                self._workers.drain(state.closed_at, state.over_at)
            elif action is Do.RESUME:
                self._log.info("serving again", connections=self._active())
            elif action is Do.END:
                self._ended()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        now = time.monotonic()
        before = self.state.phase
        self._act(self._step(Event.TIME, now), now)
        if before is Phase.CLOSING and self.state.phase is Phase.CLOSING and not self._active():
            self._act(self._step(Event.EMPTY, now), now)
        if before is Phase.CLOSING and self.state.phase is Phase.DRAINED:
            self._log.info("drained", reason=self.state.reason)
            self._finished()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
