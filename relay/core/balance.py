"""Which upstream address a new connection tries first: the usable one with the fewest connections, ties in turn.

Theory of operation. One worker keeps a `Backend` for each upstream address and tells `Balance` what becomes of its
connections; the counts are this worker's own. An address is unusable while

  - the supervisor's active checks say so (`Backend.up`), or
  - it is ejected: `fall` dials in a row failed, the last of them less than `eject` seconds ago.

When an ejection has run out, the next connection that is sent there is a trial: until it is known what became of it,
others stay away for up to `eject` seconds more, since an address that does not answer would have them all wait for
their dial timeouts. A trial that fails ejects at once, a success clears everything. So does the news that the active
checks found the address up again.

Unusable addresses come last, but LAST_RESORTS of them do come: a connection is tried rather than refused on hearsay,
and does not wait for the dial timeout of each of many addresses that swallow SYNs. Which of them come changes with each
failure, so that every one is tried by some connection. Addresses of both families compete; one that this machine has no
way to fails, and is ejected like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

LAST_RESORTS = 2  # unusable addresses that one connection tries

_ACTIVE, _TURN, _FAILED_AT = attrgetter("active"), attrgetter("turn"), attrgetter("failed_at")


@dataclass(slots=True, eq=False)
class Backend:
    """One upstream address as one worker sees it. Changed by `Balance` alone. Times are monotonic seconds."""

    key: tuple[str, int]  # literal address and port
    active: int = 0  # this worker's connections to it, and dials under way
    up: bool = True  # what the active checks say
    failures: int = 0  # dials in a row
    failed_at: float = 0.0  # the last of them; 0: none yet
    ejected_until: float = 0.0  # 0: not ejected
    on_trial: bool = False  # `ejected_until` is how long the others wait for what becomes of the trial
    turn: int = 0  # number of the last dial; 0: none yet


class Balance:
    """Chooses between backends, and decides which failures eject one."""

    def __init__(self, fall: int, eject: float) -> None:
        """`fall` failed dials in a row eject an address for `eject` seconds; 0 seconds: never."""
        self._turn = 0
        self.configure(fall, eject)

    def configure(self, fall: int, eject: float) -> None:
        """Other values, from the next failure on."""
        if fall < 1 or eject < 0:
            raise ValueError("fall is at least 1, eject at least 0")
        self._fall = fall
        self._eject = eject

    def order(self, backends: Sequence[Backend], now: float) -> list[Backend]:
        """Those that a new connection tries, in this order; a list of the caller's own.

        First the usable ones, fewest connections first and, among equals, the one whose last dial is longest ago;
        those never dialled as they were given, so workers that give them in different orders do not all begin with the
        same one. Then LAST_RESORTS of the unusable ones, the least recently failed first.
        """
        if len(backends) == 1:
            return [backends[0]]
        # Sorting is stable: what was sorted by last decides, what was sorted by before breaks ties.
        row = sorted(backends, key=_TURN)
        row.sort(key=_ACTIVE)
        usable = [backend for backend in row if backend.up and backend.ejected_until <= now]
        if len(usable) < len(row):
            rest = [backend for backend in row if not backend.up or backend.ejected_until > now]
            rest.sort(key=_FAILED_AT)
            usable += rest[:LAST_RESORTS]
        return usable

    def dialing(self, backend: Backend, now: float) -> None:
        """A dial begins. Followed by `connected` and `closed`, by `failed`, or, if given up, by `closed` alone."""
        self._turn += 1
        backend.turn = self._turn
        backend.active += 1
        if 0 < backend.ejected_until <= now:
            backend.on_trial = True
            backend.ejected_until = now + self._eject

    def connected(self, backend: Backend) -> None:
        """A dial succeeded."""
        backend.failures = 0
        if backend.ejected_until:
            self._readmit(backend)

    def failed(self, backend: Backend, now: float) -> bool:
        """A dial failed, and not for want of something on this machine (that is `closed`). Whether this ejects it.

        Failures of an address that is ejected already, from dials that were under way or a last resort, do not make
        the ejection longer.
        """
        backend.active -= 1
        backend.failures += 1
        backend.failed_at = now
        if backend.failures < self._fall or not self._eject:
            return False
        if backend.ejected_until > now and not backend.on_trial:
            return False
        backend.on_trial = False
        backend.ejected_until = now + self._eject
        return True

    def closed(self, backend: Backend) -> None:
        """A connection has ended, or a dial was given up: the client left, this machine has run out of something."""
        backend.active -= 1

    def set_up(self, backend: Backend, up: bool) -> None:
        """What the active checks say; a change to up ends an ejection."""
        if up and not backend.up:
            self._readmit(backend)
        backend.up = up

    def _readmit(self, backend: Backend) -> None:
        backend.failures = 0
        backend.ejected_until = 0.0
        backend.on_trial = False
