"""The drain: how an instance goes out of service without cutting anybody off, as a transition table.

    serving → announcing → closing → drained, or the end of the process

Announcing: not ready, and still accepting, until the load balancer has noticed. Closing: nothing more is accepted, and
what is established is closed evenly over the window, oldest first, so that devices come back to the siblings spread
out. Drained: no connection is left, the process lives on and can be told to serve again; a drain that was started to
end the process ends it instead.

Signals, the admin port, a cloud's events and the passing of time are all just events. Nothing here has a clock, waits,
or does anything: `step` says what is to be done.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

# Where everything has to be over at a time set from outside:
ANNOUNCED = 0.2  # of the time that is left may go to the announcement
MARGIN = 0.1  # of it is kept for connections that take a while to close
# Seconds for those, at most and at least: somewhat more than an engine gives a client to answer its end
# (`engines.base.GRACEFUL_CLOSE_TIMEOUT`), so that it is the engine that closes it.
GRACE, LEAST_GRACE = 6.5, 1.0
# Seconds for those that were about to connect when the last SYN was answered: they are let in, and whether all are gone
# is not known before. More than an engine's `acceptor.LINGER` and a worker's tick.
HANDSHAKES = 1.8
LATE = 2.0  # seconds after which a worker is late with closing by force


class Phase(enum.Enum):
    """Where the instance stands."""

    SERVING = "serving"
    ANNOUNCING = "announcing"
    CLOSING = "closing"
    DRAINED = "drained"
    ENDED = "ended"


class Event(enum.Enum):
    """What happened."""

    BEGIN = "begin"  # with an Order
    TIME = "time"  # some time has passed
    EMPTY = "empty"  # no connection is left
    UNDRAIN = "undrain"  # an operator takes back what operators want, or else what a cloud's event wants
    CALLED_OFF = "called_off"  # no cloud's event wants it any more
    HURRY = "hurry"  # end now


class Do(enum.Enum):
    """What is to be done."""

    ANNOUNCE = "announce"  # be not ready
    CLOSE = "close"  # accept no more, close evenly until State.closed_at, and by force at State.over_at
    RESUME = "resume"  # accept again
    END = "end"  # end the process


@dataclass(frozen=True, slots=True)
class Order:
    """A drain that somebody wants. Seconds.

    `left` is when everything has to be over, None: as the settings say. `ends`: the process ends with it. `reason` is
    for people. `lasts`: it is an operator's, or a signal's; else a cloud's event's, which may be called off.
    """

    announce: float
    window: float
    ends: bool
    reason: str
    left: float | None = None
    lasts: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """Where a drain stands. Times are monotonic seconds, 0 while there is no drain."""

    phase: Phase = Phase.SERVING
    announced_at: float = 0.0  # the announcement is over
    closed_at: float = 0.0  # the last connection has been told to close
    over_at: float = 0.0  # what has not closed by then is closed by force
    ends: bool = False
    lasts: bool = False  # an operator wants it, or a signal
    event: str = ""  # the reason of a cloud's event that wants it, if one does
    reason: str = ""
    settled_at: float = 0.0  # nobody comes any more

    @property
    def draining(self) -> bool:
        return self.phase is not Phase.SERVING

    def left(self, now: float) -> float:
        """Seconds until the window is over."""
        return max(0.0, self.closed_at - now)


Result = tuple[State, tuple[Do, ...]]


def split(order: Order) -> tuple[float, float, float]:
    """Seconds for the announcement, for closing, and for those that are closing already when that is over.

    The order's own, or as much of them as fits into what is left.
    """
    if order.left is None:
        return order.announce, order.window, GRACE
    left = max(0.0, order.left)
    announce, grace = min(order.announce, left * ANNOUNCED), min(GRACE, left * MARGIN)
    return announce, min(order.window, left - announce - grace), max(LEAST_GRACE, grace)


def step(state: State, event: Event, now: float, order: Order | None = None) -> Result:
    """The next state and what is to be done. BEGIN comes with an order."""
    return _TRANSITIONS[state.phase, event](state, now, order)


def _begin(_state: State, now: float, order: Order | None) -> Result:
    assert order is not None
    announce, window, grace = split(order)
    closed_at = now + announce + window
    state = State(Phase.ANNOUNCING, now + announce, closed_at, closed_at + grace)
    state = _wanted_by(state, order)
    after, more = _time(state, now, None)
    return after, (Do.ANNOUNCE, *more)


def _again(state: State, now: float, order: Order | None) -> Result:
    """Another drain while one is under way: whatever is sooner, and the process ends if either wants it."""
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
        return wanted, (Do.CLOSE,)  # the same, faster
    return wanted, ()


def _wanted_by(state: State, order: Order) -> State:
    """One more wants it: the reason is that of whoever is least likely to let it be."""
    weightier = (order.ends, order.lasts) > (state.ends, state.lasts) or not state.reason
    return replace(
        state,
        ends=state.ends or order.ends,
        lasts=state.lasts or order.lasts,
        event=state.event if order.lasts else order.reason,
        reason=order.reason if weightier else state.reason,
    )


def _again_drained(state: State, _now: float, order: Order | None) -> Result:
    assert order is not None
    wanted = _wanted_by(state, order)
    if order.ends:
        return replace(wanted, phase=Phase.ENDED), (Do.END,)
    return wanted, ()


def _time(state: State, now: float, _order: Order | None) -> Result:
    """Announcing, until that is over."""
    if now < state.announced_at:
        return state, ()
    settled_at = min(now + HANDSHAKES, state.over_at)
    return replace(state, phase=Phase.CLOSING, settled_at=settled_at), (Do.CLOSE,)


def _closing(state: State, now: float, _order: Order | None) -> Result:
    """Closing, until that should be over: a worker that has not managed is not waited for."""
    return _empty(state, now, None) if now > state.over_at + LATE else (state, ())


def _empty(state: State, now: float, _order: Order | None) -> Result:
    if now < state.settled_at:
        return state, ()
    if state.ends:
        return replace(state, phase=Phase.ENDED), (Do.END,)
    return replace(state, phase=Phase.DRAINED), ()


def _undrain(state: State, _now: float, _order: Order | None) -> Result:
    """Back to service, unless the process was told to end: whoever told it waits for that.

    Nor while an event wants the drain as well: whoever takes the own one back need not know that one has just begun.
    They can take back that as well, then.
    """
    if state.ends:
        return state, ()
    if state.lasts and state.event:
        return replace(state, lasts=False, reason=state.event), ()
    return State(), (Do.RESUME,)


def _called_off(state: State, _now: float, _order: Order | None) -> Result:
    """Back to service, unless somebody else wants the drain."""
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
    (Phase.ANNOUNCING, Event.EMPTY): _stay,  # somebody may still come
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
    """How many of those that have lived long enough may be told to close by each tick: as many as a drain would tell.

    The pace is that of the most connections since somebody last waited for it. So whoever comes to wait, behind no more
    than all others, has had its turn after the window; the pace of what is left would grow ever slower.
    """

    def __init__(self) -> None:
        self._count = 0

    def due(self, connections: int, waiting: int, tick: float, window: float) -> int:
        """For this tick. `connections` are all, `waiting` those who wait; the times are seconds."""
        wanted = math.ceil(connections * tick / window) if window > tick else connections
        self._count = max(self._count, wanted) if waiting else 0
        return min(self._count, waiting)


class Pace:
    """How many of `count` connections are to have been told to close by when: evenly from `now` until `until`."""

    def __init__(self, count: int, now: float, until: float) -> None:
        self._count = count
        self._start = now
        self._seconds = until - now
        self._begun = 0

    def due(self, now: float) -> int:
        """How many more, now. All of them once the time is over."""
        elapsed = now - self._start
        if elapsed >= self._seconds:
            wanted = self._count
        else:
            wanted = min(self._count, int(self._count * max(0.0, elapsed) / self._seconds))
        more = wanted - self._begun
        self._begun += max(0, more)
        return max(0, more)
