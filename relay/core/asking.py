"""One question that is asked again and again: how long until the next time, and when its failing is worth a word.

Whoever asks may fail every second for days, or every other time: the log gets one line when it begins, and one when it
is over.
"""

from __future__ import annotations

STEADY = 5  # good answers in a row, until it is said that all is well again

_DOUBLINGS = 10  # more are beyond any `most`, and one day beyond a float


class Asking:
    """How it goes. Seconds; `now` is monotonic.

    From the end of one question to the next it is `pause` seconds, and twice as many for each failure in a row after
    the first, up to `most`. `steady` good answers in a row are the end of failing.
    """

    def __init__(self, pause: float, most: float, steady: int = STEADY) -> None:
        self._pause = pause
        self._most = most
        self._steady = steady
        self._good = 0  # in a row
        self._said_at: float | None = None  # that it fails
        self.ok: bool | None = None  # the last time; None before the first
        self.error = ""  # of the last time
        self.failures = 0  # in a row
        self.failing_since = 0.0  # the first of these
        self.good_at: float | None = None  # the last good answer

    def failed(self, error: str, now: float) -> bool:
        """It did not work. Whether that is to be said."""
        if not self.failures:
            self.failing_since = now
        self.ok, self.error, self._good = False, error, 0
        self.failures += 1
        if self._said_at is not None:
            return False
        self._said_at = now
        return True

    def worked(self, now: float) -> float | None:
        """It worked. If it is to be said that it does again: for how many seconds it has not."""
        self.ok, self.error, self.failures, self.good_at = True, "", 0, now
        self._good += 1
        said_at = self._said_at
        if said_at is None or self._good < self._steady:
            return None
        self._said_at = None
        return now - said_at

    def pause(self) -> float:
        """Until the next time."""
        return min(self._most, self._pause * 2.0 ** min(max(0, self.failures - 1), _DOUBLINGS))
