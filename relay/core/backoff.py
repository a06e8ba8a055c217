"""Exponential backoff: how long to wait before the next attempt, and which failures are worth a line in the log."""

from __future__ import annotations

STEADY = 5  # successes in a row after which recovery is logged

_DOUBLINGS = 10  # more exceed any limit in use, and in the end the range of a float


def delay(failures: int, first: float, most: float) -> float:
    """Seconds to wait after `failures` in a row: `first`, doubled by each further failure, at most `most`."""
    return min(most, first * 2.0 ** min(max(0, failures - 1), _DOUBLINGS))


class Backoff:
    """The state of an operation that is repeated for ever. All times are monotonic seconds.

    `pause` gives the wait before the next attempt: `first` seconds, doubled by each failure in a row after the first,
    up to `most`. A run of failures is logged once when it begins and once when `steady` attempts in a row have
    succeeded, so that an operation which fails every second, or every other time, does not fill the log.
    """

    def __init__(self, first: float, most: float, steady: int = STEADY) -> None:
        self._first = first
        self._most = most
        self._steady = steady
        self._good = 0  # successes in a row
        self._logged_at: float | None = None  # when the present run of failures was logged
        self.ok: bool | None = None  # the last attempt succeeded; None before the first
        self.error = ""  # of the last attempt
        self.failures = 0  # in a row
        self.failing_since = 0.0  # when the first of these failed
        self.good_at: float | None = None  # when an attempt last succeeded

    def failed(self, error: str, now: float) -> bool:
        """Record a failure; True if it is the first of a run and should be logged."""
        if not self.failures:
            self.failing_since = now
        self.ok, self.error, self._good = False, error, 0
        self.failures += 1
        if self._logged_at is not None:
            return False
        self._logged_at = now
        return True

    def succeeded(self, now: float) -> float | None:
        """Record a success; the seconds that the run of failures lasted if its end should be logged, else None."""
        self.ok, self.error, self.failures, self.good_at = True, "", 0, now
        self._good += 1
        logged_at = self._logged_at
        if logged_at is None or self._good < self._steady:
            return None
        self._logged_at = None
        return now - logged_at

    def pause(self) -> float:
        """Seconds until the next attempt."""
        return delay(self.failures, self._first, self._most)
