"""Rate limits over all workers of the instance: token buckets in shared memory, each stored as one time.

Theory of operation. A bucket of `burst` tokens, refilled at `per_second`, is stored as the time at which it will be
full again (the "theoretical arrival time" of GCRA, ITU-T I.371 annex A): taking a token moves that time ahead by one
interval, and it may not be further ahead than the burst allows. Reading, deciding and writing are one step under a lock
between processes, since a rate, unlike the connections of `limits`, is not a sum over the workers. Waiting for a lock
is bounded: a worker that was stopped while it held one costs the others refusals, never a hang.

Sources have a table of fixed size: sets of 16 slots, each a 64-bit hash of the source's network (made in `admission`)
and its time. A slot whose time has passed is a full bucket, which needs no slot, so it is free. If a set has no free
slot, the bucket nearest to full is replaced: its source gains least, at most its burst, and a source that connects
without pause is the last to be forgotten.

A customer's bucket is one time at the customer's slot (`customer_slots`), with a lock of its own. Interval and
tolerance come from the customers' table, so a reload changes them with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Numbers = memoryview | list[int]  # a memoryview over shared memory, or a list in tests

SETS = 16_384  # of WAYS slots of 16 bytes: 4 MiB, of which only used pages take memory; 262,144 sources at once
WAYS = 16
ACCEPT, DIAL, ROUTES = 0, 1, 2  # the single buckets and their lock numbers; those of routes begin at ROUTES
ROUTE_BUCKETS = 2048  # routes (by name) with a rate, over the life of a process
SINGLES = ROUTES + ROUTE_BUCKETS
NANO = 1_000_000_000
NO_NUMBERS: list[int] = []  # where there are no customers


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in tokens per second, 0 for no limit, with the burst: tokens available after a pause (at least 1)."""

    per_second: float
    burst: float

    @property
    def interval(self) -> int:
        """Nanoseconds from one token to the next."""
        return int(-(-NANO // self.per_second))

    @property
    def tolerance(self) -> int:
        """Nanoseconds by which a bucket's time may be ahead of the clock when a token is taken."""
        return int((max(1.0, self.burst) - 1.0) * self.interval)


@dataclass(frozen=True, slots=True)
class RatePlan:
    """The rates. `queue` and `queue_seconds` bound each dial queue, where connections wait for a token.

    `routes` has the rates of routes by the number of their bucket. Connections of a route with a rate take a token
    there and none of `dial`.
    `may_limit_sources`: the table of sources exists even while `source` is unlimited, since a reload may limit it.
    """

    accept: Rate = Rate(0.0, 1.0)
    source: Rate = Rate(0.0, 1.0)
    dial: Rate = Rate(0.0, 1.0)
    routes: tuple[Rate, ...] = ()
    queue: int = 0
    queue_seconds: float = 0.0
    may_limit_sources: bool = False
    customers: int = 0  # slots for customers, whose rates are in their own table (`core.customers`)

    @property
    def source_cells(self) -> int:
        """Size of each of the two source tables, in cells."""
        return SETS * WAYS if self.source.per_second or self.may_limit_sources else 0


class Lock(Protocol):
    """Mutual exclusion between processes, by lock number. A lock of a dead process is free."""

    def acquire(self, number: int, /) -> bool:
        """Try for a bounded time to take the lock; True if it was taken."""

    def release(self, number: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Late:
    """No token in time. `full`: the dial queue is full; else the wait would be longer than `queue_seconds`."""

    full: bool


class Rates:
    """One worker's view of the shared buckets; all zero at first.

    `singles` has SINGLES cells of 64 bits, `hashes` and `times` have `plan.source_cells` each, `customers` has
    `plan.customers`. `clock` is the monotonic clock in nanoseconds, the same for all workers (CLOCK_MONOTONIC is one
    for the machine). A single worker needs no `lock`.
    """

    def __init__(
        self,
        plan: RatePlan,
        singles: Numbers,
        hashes: Numbers,
        times: Numbers,
        lock: Lock | None,
        clock: Callable[[], int],
        customers: Numbers = NO_NUMBERS,
    ) -> None:
        self._singles = singles
        self._hashes = hashes
        self._times = times
        self._lock = lock
        self._clock = clock
        self._customers = customers
        self.by_source = plan.source.per_second > 0
        self.limits_accepts = plan.accept.per_second > 0
        self._accept = (plan.accept.interval, plan.accept.tolerance) if plan.accept.per_second else None
        self._source = (plan.source.interval, plan.source.tolerance) if self.by_source else (0, 0)
        self._dial = (plan.dial.interval, plan.dial.tolerance) if plan.dial.per_second else (0, 0)
        self._routes = [(rate.interval, rate.tolerance) if rate.per_second else (0, 0) for rate in plan.routes]
        self._queue = plan.queue
        self._longest = int(plan.queue_seconds * NANO)

    def accept(self) -> bool:
        """Take a token of `limits.accept_rate`; False if there is none."""
        if self._accept is None:
            return True
        interval, tolerance = self._accept
        if self._lock is not None and not self._lock.acquire(ACCEPT):
            return False
        try:
            now, time = self._clock(), self._singles[ACCEPT]
            if time - now > tolerance:
                return False
            self._singles[ACCEPT] = max(time, now) + interval
            return True
        finally:
            if self._lock is not None:
                self._lock.release(ACCEPT)

    def source(self, source: int) -> bool:
        """Take a token of the source with that hash (64 bits, not 0); False if it has none."""
        interval, tolerance = self._source
        number = source & (SETS - 1)
        if self._lock is not None and not self._lock.acquire(SINGLES + number):
            return False
        try:
            now, start = self._clock(), number * WAYS
            cell = start if self._hashes[start] == source else self._slot(start, source)
            time = self._times[cell]
            if time - now > tolerance:
                return False
            self._times[cell] = max(time, now) + interval
            return True
        finally:
            if self._lock is not None:
                self._lock.release(SINGLES + number)

    def customer(self, slot: int, interval: int, tolerance: int) -> bool:
        """Take a token of the customer with that slot; False if there is none.

        `interval` and `tolerance` are those of the customer's `Rate`, in nanoseconds.
        """
        number = SINGLES + SETS + slot
        if self._lock is not None and not self._lock.acquire(number):
            return False
        try:
            now, time = self._clock(), self._customers[slot]
            if time - now > tolerance:
                return False
            self._customers[slot] = max(time, now) + interval
            return True
        finally:
            if self._lock is not None:
                self._lock.release(number)

    def _slot(self, start: int, source: int) -> int:
        """The cell of a source in the set at `start`: its present one, or else that of the bucket nearest to full."""
        hashes = list(self._hashes[start : start + WAYS])
        if source in hashes:
            return start + hashes.index(source)
        times = list(self._times[start : start + WAYS])
        cell = start + times.index(min(times))
        self._hashes[cell], self._times[cell] = source, 0
        return cell

    def dial(self) -> int | Late:
        """Reserve the next token for a dial. Returns the time at which it may begin, in nanoseconds: now or later."""
        return self._reserve(DIAL, *self._dial)

    def dial_on_route(self, bucket: int) -> int | Late:
        """The same for a dial on a route with a rate of its own, which has this bucket."""
        return self._reserve(ROUTES + bucket, *self._routes[bucket])

    def _reserve(self, number: int, interval: int, tolerance: int) -> int | Late:
        if self._lock is not None and not self._lock.acquire(number):
            return Late(full=False)
        try:
            now, time = self._clock(), self._singles[number]
            wait = time - tolerance - now
            if wait > 0:
                if wait > self._longest:
                    return Late(full=False)
                if -(-wait // interval) > self._queue:
                    return Late(full=True)
            self._singles[number] = max(time, now) + interval
            return now + max(0, wait)
        finally:
            if self._lock is not None:
                self._lock.release(number)
