"""Carries a drain out: `core.drain` says what is to be done and when, the workers do it, people and probes are told.

Started by SIGTERM, `relay drain` (POST /drain) or a cloud's event, all of which are orders to the same table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from relay.core import drain
from relay.core.drain import Do, Event, Order, Phase, State
from relay.supervisor.service_log import ServiceLog

LOOK = 0.1  # seconds between two looks at a drain under way
TOLD_TO_END = "the process was told to end, and whoever told it waits for that"


class Workers(Protocol):
    """What is needed of the pool."""

    def close_evenly(self, closed_at: float, over_at: float) -> None:
        """Accept no more; close what is established evenly until then, what is left by force (monotonic seconds)."""

    def resume(self) -> None:
        """Accept again, at once. Raises StartError, and nothing has changed."""


class Drainer:
    """The drains of one run.

    `active` counts connections; `ended` is called when the process is to end, `finished` when it is drained and lives
    on.
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
        """Drain, or do what is under way faster."""
        before = self.state
        now = time.monotonic()
        do = self._step(Event.BEGIN, now, order)
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
        self._do(do, now)

    def hurry(self) -> None:
        """End now."""
        self._do(self._step(Event.HURRY, time.monotonic()), time.monotonic())

    def undrain(self) -> str:
        """Back to service; why not, or nothing. Raises StartError if the addresses cannot be listened on any more."""
        before = self.state
        after = self._take_back(Event.UNDRAIN)
        if not after.draining:
            return ""
        if after.ends:
            return TOLD_TO_END
        assert before != after
        return f"{after.reason}: this drain began meanwhile, and goes on; undrain once more to end that as well"

    def call_off(self) -> None:
        """No cloud's event wants a drain any more: back to service, unless somebody else does. Raises StartError."""
        self._take_back(Event.CALLED_OFF)

    def _take_back(self, event: Event) -> State:
        """One step of the event loop, so that nothing begins or ends a drain in the middle of it."""
        before, now = self.state, time.monotonic()
        after, do = drain.step(before, event, now, None)
        if Do.RESUME in do and before.phase is not Phase.ANNOUNCING:
            self._workers.resume()
        self.state = after
        self._do(do, now)
        return after

    @property
    def drained(self) -> bool:
        return self.state.phase is Phase.DRAINED

    def _step(self, event: Event, now: float, order: Order | None = None) -> tuple[Do, ...]:
        self.state, do = drain.step(self.state, event, now, order)
        return do

    def _do(self, actions: tuple[Do, ...], now: float) -> None:
        state = self.state
        # Before anything that may go wrong: a drain that nobody looks at would never end.
        if state.phase is Phase.ENDED or not state.draining:
            self._stop_timer()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)
        for action in actions:
            if action is Do.CLOSE:
                window = state.left(now)
                self._log.info("closing connections", window_seconds=round(window, 3), connections=self._active())
                self._workers.close_evenly(state.closed_at, state.over_at)
            elif action is Do.RESUME:
                self._log.info("serving again", connections=self._active())
            elif action is Do.END:
                self._ended()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)
        now = time.monotonic()
        before = self.state.phase
        self._do(self._step(Event.TIME, now), now)
        if before is Phase.CLOSING and self.state.phase is Phase.CLOSING and not self._active():
            self._do(self._step(Event.EMPTY, now), now)
        if before is Phase.CLOSING and self.state.phase is Phase.DRAINED:
            self._log.info("drained", reason=self.state.reason)
            self._finished()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
