"""The state machine of a drain, as a transition table: how an instance goes out of service gracefully.

    serving → announcing → closing → drained, or the end of the process

Announcing: not ready, but still accepting, until the load balancer has noticed. Closing: no connection is accepted any
more, and established ones are closed evenly over the window, oldest first, so that devices reconnect to the sibling
instances spread over that time. Drained: no connection is left; the process lives on and can serve again, or ends if
the drain was ordered to end it.

Signals, the admin port, a cloud's events and the passing of time are all events. This module has no clock, does not
wait and does not act: `step` returns the actions.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

# For a drain with a deadline, as parts of the time left:
ANNOUNCED = 0.2  # most of it that the announcement may take
MARGIN = 0.1  # reserved for connections that are slow to close
# Seconds for slow closes after the window, at most and at least: somewhat more than an engine waits for a client's FIN
# (`engines.base.GRACEFUL_CLOSE_TIMEOUT`), so that the engine ends the connection first.
GRACE, LEAST_GRACE = 6.5, 1.0
# Seconds after accepting stops in which handshakes in progress may still become connections, so that "no connection" is
# not final before. More than an engine's `acceptor.LINGER` plus a worker's tick.
HANDSHAKES = 1.8
LATE = 2.0  # seconds after State.over_at at which workers are no longer waited for


class Phase(enum.Enum):
    """The phase of the instance."""

    SERVING = "serving"
    ANNOUNCING = "announcing"
    CLOSING = "closing"
    DRAINED = "drained"
    ENDED = "ended"


class Event(enum.Enum):
    """An event of the state machine."""

    BEGIN = "begin"  # a drain was ordered; comes with an Order
    TIME = "time"  # some time has passed
    EMPTY = "empty"  # no connection is left
    UNDRAIN = "undrain"  # an operator cancels the operators' drain, or else the drain of a cloud's event
    CALLED_OFF = "called_off"  # no cloud's event asks for the drain any more
    HURRY = "hurry"  # end the process now


class Do(enum.Enum):
    """An action of the state machine, for the caller to carry out."""

    ANNOUNCE = "announce"  # report not ready
    CLOSE = "close"  # stop accepting, close connections evenly until State.closed_at, by force at State.over_at
    RESUME = "resume"  # accept again
    END = "end"  # end the process


@dataclass(frozen=True, slots=True)
class Order:
    """An order to drain, from an operator, a signal or a cloud's event. Times are in seconds.

    `left` is the time left until everything must be over; None: no deadline. `ends`: the process ends after the drain.
    `reason` is for logs and status. `lasts`: from an operator or a signal; else from a cloud's event, which may be
    called off.
    """

    announce: float
    window: float
    ends: bool
    reason: str
    left: float | None = None
    lasts: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """The state of a drain. Times are monotonic seconds, 0 while there is no drain."""

    phase: Phase = Phase.SERVING
    announced_at: float = 0.0  # end of the announcement
    closed_at: float = 0.0  # end of the window: every connection has been asked to close
    over_at: float = 0.0  # remaining connections are closed by force
    ends: bool = False  # the process ends after the drain
    lasts: bool = False  # an operator or a signal ordered it
    event: str = ""  # the reason of the cloud's event that ordered it; empty without one
    reason: str = ""  # the weightiest order's
    settled_at: float = 0.0  # no handshake in progress can become a connection any more

    @property
    def draining(self) -> bool:
        return self.phase is not Phase.SERVING

    def left(self, now: float) -> float:
        """Seconds until the end of the window."""
        return max(0.0, self.closed_at - now)


Result = tuple[State, tuple[Do, ...]]


def split(order: Order) -> tuple[float, float, float]:
    """Seconds for the announcement, for the window, and for slow closes after it.

    The order's own times, shortened to fit into the time left if there is a deadline.
    """
    if order.left is None:
        return order.announce, order.window, GRACE
    left = max(0.0, order.left)
    announce, grace = min(order.announce, left * ANNOUNCED), min(GRACE, left * MARGIN)
    return announce, min(order.window, left - announce - grace), max(LEAST_GRACE, grace)


def step(state: State, event: Event, now: float, order: Order | None = None) -> Result:
    """The next state and the actions. BEGIN comes with an order."""
    return _TRANSITIONS[state.phase, event](state, now, order)


def _begin(_state: State, now: float, order: Order | None) -> Result:
    """A drain begins."""
    assert order is not None
    announce, window, grace = split(order)
    closed_at = now + announce + window
    state = State(Phase.ANNOUNCING, now + announce, closed_at, closed_at + grace)
    state = _wanted_by(state, order)
    after, more = _time(state, now, None)
    return after, (Do.ANNOUNCE, *more)


def _again(state: State, now: float, order: Order | None) -> Result:
    """Another order during a drain: the sooner times apply, and the process ends if either order says so."""
    assert order is not None
    announce, window, grace = split(order)
    closed_at = now + announce + window
    wanted = replace(
        _wanted_by(state, order),
        announced_at=min(state.announced_at, now + announce),
        closed_at=min(state.closed_at, closed_at),
        over_at=min(state.over_at, closed_at + grace),
    )
    if state.phase is Phase.ANNOUNCING:
        return _time(wanted, now, None)
    if wanted.over_at < state.over_at:
        return wanted, (Do.CLOSE,)  # again, with the sooner times
    return wanted, ()


def _wanted_by(state: State, order: Order) -> State:
    """Add an order to the state. The weightiest order gives the reason: first one that ends, then one that lasts."""
    weightier = (order.ends, order.lasts) > (state.ends, state.lasts) or not state.reason
    return replace(
        state,
        ends=state.ends or order.ends,
        lasts=state.lasts or order.lasts,
        event=state.event if order.lasts else order.reason,
        reason=order.reason if weightier else state.reason,
    )


def _again_drained(state: State, _now: float, order: Order | None) -> Result:
    """Another order when no connection is left: the process ends at once if the order says so."""
    assert order is not None
    wanted = _wanted_by(state, order)
    if order.ends:
        return replace(wanted, phase=Phase.ENDED), (Do.END,)
    return wanted, ()


def _time(state: State, now: float, _order: Order | None) -> Result:
    """Announcing: start closing once the announcement is over."""
    if now < state.announced_at:
        return state, ()
    settled_at = min(now + HANDSHAKES, state.over_at)
    return replace(state, phase=Phase.CLOSING, settled_at=settled_at), (Do.CLOSE,)


def _closing(state: State, now: float, _order: Order | None) -> Result:
    """Closing: go on without workers that have not closed everything LATE seconds after `over_at`."""
    return _empty(state, now, None) if now > state.over_at + LATE else (state, ())


def _empty(state: State, now: float, _order: Order | None) -> Result:
    """Closing, and no connection is left: drained, or the end of the process, once no handshake is in progress."""
    if now < state.settled_at:
        return state, ()
    if state.ends:
        return replace(state, phase=Phase.ENDED), (Do.END,)
    return replace(state, phase=Phase.DRAINED), ()


def _undrain(state: State, _now: float, _order: Order | None) -> Result:
    """Return to service, unless the process was ordered to end, since a service manager waits for that.

    If a cloud's event has ordered the drain too, only the operator's order is cancelled: the operator may not know that
    the event has just begun. A second undrain cancels the event's order as well.
    """
    if state.ends:
        return state, ()
    if state.lasts and state.event:
        return replace(state, lasts=False, reason=state.event), ()
    return State(), (Do.RESUME,)


def _called_off(state: State, _now: float, _order: Order | None) -> Result:
    """Return to service, unless an operator or a signal ordered the drain too."""
    if state.ends or state.lasts:
        return replace(state, event=""), ()
    return State(), (Do.RESUME,)


def _hurry(state: State, _now: float, _order: Order | None) -> Result:
    return replace(state, phase=Phase.ENDED, ends=True), (Do.END,)


def _stay(state: State, _now: float, _order: Order | None) -> Result:
    return state, ()


_TRANSITIONS: dict[tuple[Phase, Event], Callable[[State, float, Order | None], Result]] = {
    (Phase.SERVING, Event.BEGIN): _begin,
    (Phase.SERVING, Event.TIME): _stay,
    (Phase.SERVING, Event.EMPTY): _stay,
    (Phase.SERVING, Event.UNDRAIN): _stay,
    (Phase.SERVING, Event.CALLED_OFF): _stay,
    (Phase.ANNOUNCING, Event.BEGIN): _again,
    (Phase.ANNOUNCING, Event.TIME): _time,
    (Phase.ANNOUNCING, Event.EMPTY): _stay,  # connections are still accepted
    (Phase.ANNOUNCING, Event.UNDRAIN): _undrain,
    (Phase.ANNOUNCING, Event.CALLED_OFF): _called_off,
    (Phase.CLOSING, Event.BEGIN): _again,
    (Phase.CLOSING, Event.TIME): _closing,
    (Phase.CLOSING, Event.EMPTY): _empty,
    (Phase.CLOSING, Event.UNDRAIN): _undrain,
    (Phase.CLOSING, Event.CALLED_OFF): _called_off,
    (Phase.DRAINED, Event.BEGIN): _again_drained,
    (Phase.DRAINED, Event.TIME): _stay,
    (Phase.DRAINED, Event.EMPTY): _stay,
    (Phase.DRAINED, Event.UNDRAIN): _undrain,
    (Phase.DRAINED, Event.CALLED_OFF): _called_off,
}
for _event in Event:
    _TRANSITIONS[Phase.ENDED, _event] = _stay
for _phase in Phase:
    if _phase is not Phase.ENDED:
        _TRANSITIONS[_phase, Event.HURRY] = _hurry


class AgePace:
    """How many connections past `timeouts.max_age` are closed in each tick: as many as a drain would close.

    The pace follows the most connections seen since the queue of aged connections was last empty. So a connection that
    joins the queue is closed within the window, since at most all others are ahead of it; a pace from the present
    number of connections would become ever slower.
    """

    def __init__(self) -> None:
        self._count = 0

    def due(self, connections: int, waiting: int, tick: float, window: float) -> int:
        """How many to close in this tick, of `connections` in all and `waiting` past their age; times in seconds."""
        wanted = math.ceil(connections * tick / window) if window > tick else connections
        self._count = max(self._count, wanted) if waiting else 0
        return min(self._count, waiting)


class Pace:
    """Spreads the closing of `count` connections evenly from `now` until `until`, monotonic seconds."""

    def __init__(self, count: int, now: float, until: float) -> None:
        self._count = count
        self._start = now
        self._seconds = until - now
        self._begun = 0

    def due(self, now: float) -> int:
        """How many more connections to close now; all that are left once the time is over."""
        elapsed = now - self._start
        if elapsed >= self._seconds:
            wanted = self._count
        else:
            wanted = min(self._count, int(self._count * max(0.0, elapsed) / self._seconds))
        more = wanted - self._begun
        self._begun += max(0, more)
        return max(0, more)
