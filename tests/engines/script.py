"""A connection that follows a script: the tests' implementation of `relay.engines.contract.Handler`.

It writes down every event with its value and every call of `moved`, and answers with what the test laid out for the
event, or with what a relay would answer by default. It knows nothing of sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from relay.address import Address
from relay.engines.contract import NEVER, Action, Close, Event, Pump, SharedTimeouts, Wait

ANSWERS: Mapping[Event, Action] = {
    Event.PREREAD_ENDED: Close(True, True),
    Event.PREREAD_TIMEOUT: Close(True, True),
    Event.CONNECTED: Pump(),
    Event.DIAL_FAILED: Close(True, True),
    Event.DIAL_TIMEOUT: Close(True, True),
    Event.FINISHED: Close(),
    Event.CLIENT_RESET: Close(False, True),
    Event.UPSTREAM_RESET: Close(True, False),
    Event.CLIENT_LOST: Close(True, True),
    Event.UPSTREAM_LOST: Close(True, True),
    Event.IDLE: Close(True, True),
    Event.CLIENT_HALF_CLOSE: Close(True, True),
    Event.UPSTREAM_HALF_CLOSE: Close(True, True),
    Event.STOP: Close(),
    Event.DRAINED: Close(),
    Event.AGED: Close(),
    Event.DEFECT: Close(True, True),
}
PREREADS = frozenset({Event.PREREAD, Event.PREREAD_ENDED, Event.PREREAD_TIMEOUT})
STEPS = frozenset(
    {*PREREADS, Event.CONNECTED, Event.DIAL_FAILED, Event.DIAL_TIMEOUT}
)  # every other event ends the connection

Answer = Action | Callable[["ScriptedHandler", object], Action]


def in_turn(*actions: Action) -> Callable[[ScriptedHandler, object], Action]:
    """The first action the first time, the second the second time, and so on."""
    remaining = iter(actions)
    return lambda _handler, _value: next(remaining)


@dataclass
class Script:
    """A handler's actions: `first` on accept, `answers` by event (an action, or a function that returns it)."""

    first: Action = Wait()  # noqa: RUF009  (a tuple without fields: nothing to share)
    answers: Mapping[Event, Answer] = field(default_factory=dict)
    on_moved: Callable[[ScriptedHandler], None] | None = None
    timeouts: SharedTimeouts | None = None


class ScriptedHandler:
    """A handler that follows `script`, and notifies `changed` of every event."""

    def __init__(self, script: Script, client: Address, changed: threading.Condition) -> None:
        self.link: object | None = None
        self.expires_at = NEVER
        self.timeouts = script.timeouts
        self.client = client
        self.events: list[tuple[Event, object]] = []
        self.up = 0  # bytes, as last reported by the engine
        self.down = 0
        self._over = False
        self._script = script
        self._changed = changed

    def advance(self, event: Event, value: object = None) -> Action:
        with self._changed:
            self.events.append((event, value))
            self._changed.notify_all()
        answer = answers[event] if event in (answers := self._script.answers) else ANSWERS[event]  # Refuse() is false
        action = answer(self, value) if callable(answer) else answer
        self._over = event not in STEPS  # not if the answer raised an exception: DEFECT comes then
        return action

    def moved(self, up: int, down: int) -> None:
        with self._changed:
            assert up >= self.up, "bytes received so far never become fewer"
            assert down >= self.down, "bytes received so far never become fewer"
            assert not self._over, "the last report comes before the end"
            self.up, self.down = up, down
            self._changed.notify_all()
        if self._script.on_moved is not None:
            self._script.on_moved(self)

    def end(self, event: Event, value: object, up: int, down: int) -> Close:
        self.moved(up, down)
        action = self.advance(event, value)
        assert isinstance(action, Close), "nothing goes on after its end"
        return action

    @property
    def kinds(self) -> list[Event]:
        """The events, without their values."""
        return [event for event, _ in self.events]

    @property
    def endings(self) -> list[Event]:
        """The events that ended the connection. Once it has ended there must be exactly one."""
        return [event for event in self.kinds if event not in STEPS]
