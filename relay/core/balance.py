"""Which upstream address a new connection tries first: least connections among the usable ones, ties in turn.

Theory of operation. Each worker keeps a `Backend` for each upstream address and reports to `Balance` how its dials and
connections go; the counts are this worker's own. An address is unusable while

  - the supervisor's active checks find it down (`Backend.up`), or
  - it is ejected: `fall` dials in a row failed, the last of them less than `eject` seconds ago (`Ejection`).

When an ejection has run out, the next connection to that address is a trial: until its dial has ended, for up to
`eject` seconds, other connections avoid the address, since with an address that does not answer they would all wait for
their dial timeouts. A failed trial ejects at once, a success clears failures and ejection. So does an active check that
finds the address up again.

Unusable addresses come last, but LAST_RESORTS of them are tried: the checks may be wrong, so a connection is not
refused because of them, and it does not wait for the dial timeouts of many addresses that drop SYNs. Each failure
changes which ones are tried, so that every address is tried by some connection. Addresses of both families compete; one
that this machine has no route to fails, and is ejected like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

LAST_RESORTS = 2  # unusable addresses that one connection tries

_ACTIVE, _TURN, _FAILED_AT = attrgetter("active"), attrgetter("turn"), attrgetter("failed_at")


class Ejection(NamedTuple):
    """When failed dials eject an address: `fall` of them in a row, for `eject` seconds; 0 seconds: never."""

    fall: int
    eject: float


@dataclass(slots=True, eq=False)
class Backend:
    """One upstream address as one worker sees it. Only `Balance` changes it. Times are monotonic seconds."""

    key: tuple[str, int]  # literal address and port
    active: int = 0  # this worker's connections to it, and dials under way
    up: bool = True  # the result of the active checks
    failures: int = 0  # failed dials in a row
    failed_at: float = 0.0  # time of the last failed dial; 0: none yet
    ejected_until: float = 0.0  # 0: not ejected
    on_trial: bool = False  # a trial is under way; until `ejected_until` other connections wait for its result
    turn: int = 0  # number of the last dial; 0: none yet
    ejection: Ejection | None = None  # None: that of the Balance


class Balance:
    """Orders backends for new connections, and decides when failed dials eject one."""

    def __init__(self, fall: int, eject: float) -> None:
        """`fall` failed dials in a row eject an address for `eject` seconds; 0 seconds: never."""
        self._turn = 0
        self.configure(fall, eject)

    def configure(self, fall: int, eject: float) -> None:
        """Change both values, from the next failure on. Raises ValueError if one is out of range."""
        if fall < 1 or eject < 0:
            raise ValueError("fall is at least 1, eject at least 0")
        self._ejection = Ejection(fall, eject)

    def order(self, backends: Sequence[Backend], now: float) -> list[Backend]:
        """The backends that a new connection tries, in order; a new list, which the caller may change.

        First the usable ones, fewest connections first and, among equals, the one whose last dial is longest ago;
        backends that were never dialled stay in the order of `backends`, so workers that pass them in different orders
        do not all begin with the same one. Then LAST_RESORTS of the unusable ones, the least recently failed first.
        """
        if len(backends) == 1:
            return [backends[0]]
        # Sorting is stable: the last key decides, the earlier key breaks ties.
        by_load = sorted(backends, key=_TURN)
        by_load.sort(key=_ACTIVE)
        usable = [backend for backend in by_load if backend.up and backend.ejected_until <= now]
        if len(usable) < len(by_load):
            unusable = [backend for backend in by_load if not backend.up or backend.ejected_until > now]
            unusable.sort(key=_FAILED_AT)
            usable += unusable[:LAST_RESORTS]
        return usable

    def dialing(self, backend: Backend, now: float) -> None:
        """A dial begins. Later come `connected` and `closed`, or `failed`, or `closed` alone for an abandoned dial."""
        self._turn += 1
        backend.turn = self._turn
        backend.active += 1
        if 0 < backend.ejected_until <= now:
            backend.on_trial = True
            backend.ejected_until = now + (backend.ejection or self._ejection).eject

    def connected(self, backend: Backend) -> None:
        """A dial succeeded."""
        backend.failures = 0
        if backend.ejected_until:
            self._readmit(backend)

    def failed(self, backend: Backend, now: float) -> bool:
        """A dial failed because of the upstream; True if this ejects the address.

        A dial that failed for lack of a resource on this machine is reported by `closed` instead. Failures of an
        address that is ejected already, from dials under way or a last resort, do not make the ejection longer.
        """
        backend.active -= 1
        backend.failures += 1
        backend.failed_at = now
        fall, eject = backend.ejection or self._ejection
        if backend.failures < fall or not eject:
            return False
        if backend.ejected_until > now and not backend.on_trial:
            return False
        backend.on_trial = False
        backend.ejected_until = now + eject
        return True

    def closed(self, backend: Backend) -> None:
        """A connection has ended, or a dial was abandoned: the client left, or this machine ran out of a resource."""
        backend.active -= 1

    def set_up(self, backend: Backend, up: bool) -> None:
        """Set the result of the active checks; a change to up ends an ejection."""
        if up and not backend.up:
            self._readmit(backend)
        backend.up = up

    def _readmit(self, backend: Backend) -> None:
        backend.failures = 0
        backend.ejected_until = 0.0
        backend.on_trial = False
