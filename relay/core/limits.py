"""Connection limits over all workers of the instance, without a lock or a message.

Theory of operation. The workers share a table of counts with one column per worker; a worker writes only its own
column. To admit a connection, a worker

    1. announces: adds one to its own count,
    2. executes a full memory fence,
    3. reads the sum over all columns, its own announcement included,
    4. keeps the announcement if the sum is within the limit, else takes it back.

The limit is never exceeded: of the workers that keep an announcement, the one whose fence came last saw those of all
others (Dekker's argument), so the sum that it found within the limit contained them all.

No connection is refused while there is room: a sum above the limit may contain announcements that will be taken back.
Each worker has a sequence number that is odd while it decides, as in a seqlock: if the others' numbers are the same
before and after the sum was read, at most one connection per odd number is undecided. If the sum is above the limit
even without those, the limit is reached. Else the lowest of the deciding columns keeps its announcement and reads
again, and the others take theirs back and wait for it. All waiting is bounded: a worker that was stopped in the middle
(SIGSTOP, a debugger) costs the others a refusal at worst, never a hang. Clearing the column of a dead worker gives its
connections back.

A customer's connections are one more row, like a listener's. Connections without a customer neither read nor write any
of them (`acquire`); the others take `acquire_for`. Behind a PROXY header the customer is known only later: the worker
then releases the connection and admits it again, in one step of its own, and so the limits hold as for any other.

Per source, the key is a 64-bit keyed hash of the source's network (made in `admission`), kept in buckets of 16 slots in
a region per worker: one writer, any number of readers, no chains to follow. Two sources with the same hash would share
one count; with a secret key and 64 bits that is as likely as guessing the key. The table has a fixed size: a flood of
sources cannot grow it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from relay.core import limit_table
from relay.core.limit_table import Cells, LimitPlan, Row

SPINS = 400  # reads of the rivals' numbers before giving up: some 400 µs, many times as long as a decision
MASK = 0xFFFFFFFF
NO_SLOT = -1  # no source, or sources are not limited
BUCKET_FULL = -2
NO_CUSTOMER = -1
NO_CELLS: list[int] = []  # where there are no customers


class Refusal(enum.Enum):
    """Which limit refused a connection."""

    CAPACITY = "capacity"  # this worker's descriptor limit
    INSTANCE = "instance"
    LISTENER = "listener"
    SOURCE = "source"
    CUSTOMER = "customer"


class Lease:
    """The place of one admitted connection in the counts. Releasing it a second time does nothing."""

    __slots__ = ("_limits", "_listener", "_slot")

    def __init__(self, limits: Limits, listener: int, slot: int) -> None:
        self._limits: Limits | None = limits
        self._listener = listener
        self._slot = slot

    def release(self) -> None:
        """Subtract the connection from the counts."""
        limits = self._limits
        if limits is not None:
            self._limits = None
            counts, slot = limits._counts, self._slot
            counts[limits._own] -= 1
            counts[limits._listener_cells[self._listener]] -= 1
            if slot >= 0:
                limits._sources[slot] -= 1


class CustomerLease(Lease):
    """The place of a connection that a customer has; a class of its own, so that others' leases cost nothing more."""

    __slots__ = ("_customer",)

    def __init__(self, limits: Limits, listener: int, slot: int, customer: int) -> None:
        super().__init__(limits, listener, slot)
        self._customer = customer

    def release(self) -> None:
        limits = self._limits
        if limits is not None:
            limits._customers[self._customer * limits._workers + limits._column] -= 1
        super().release()


class Limits:
    """One worker's view of the shared table.

    `counts` has `plan.count_cells` cells, `hashes` (64 bits) and `sources` (counts) have `plan.source_cells` each,
    `customers` has `plan.customer_cells`, all zero at first. `customer_limits` has the customers' limits by slot, 0 for
    none. `fence` is a full memory barrier between processes.
    """

    def __init__(
        self,
        plan: LimitPlan,
        column: int,
        counts: Cells,
        hashes: Cells,
        sources: Cells,
        fence: Callable[[], None],
        customers: Cells = NO_CELLS,
        customer_limits: Row = NO_CELLS,
    ) -> None:
        if not 0 <= column < plan.workers:
            raise ValueError(f"column {column} of {plan.workers}")
        self._plan = plan
        self._column = column
        self._counts = counts
        self._hashes = hashes
        self._sources = sources
        self._fence = fence
        self._customers = customers
        self._customer_limits = customer_limits
        n = self._workers = plan.workers
        self._own = n + column
        self._instance_row = range(n, 2 * n)
        self._listener_rows = tuple(range((2 + i) * n, (3 + i) * n) for i in range(len(plan.listeners)))
        self._listener_cells = tuple(row[column] for row in self._listener_rows)
        self._ways = limit_table.WAYS
        self._region = plan.source_buckets * self._ways
        self._bucket_mask = plan.source_buckets - 1
        self._capacity, self._instance, self._per_source = plan.capacity, plan.instance, plan.per_source
        self._listener_limits = plan.listeners
        self._alone = n == 1  # no other worker decides at the same time, so reading the counts is enough

    def acquire(self, listener: int, source: int = 0) -> Lease | Refusal:
        """Admit one connection of listener number `listener` from the source with hash `source`, or say which limit
        refuses it. Hash 0: no source, so no limit per source.
        """
        counts, column, own = self._counts, self._column, self._own
        held = counts[own]
        if held >= self._capacity:
            return Refusal.CAPACITY
        limited = source and self._per_source
        # The fast path, for a decision without rivals; written out, since every connection passes here.
        limit = self._listener_limits[listener]
        if self._alone:
            if held >= self._instance:
                return Refusal.INSTANCE
            # Counted even without a limit, since a reload may set one.
            cell = self._listener_cells[listener]
            of_listener = counts[cell]
            if of_listener >= limit > 0:
                return Refusal.LISTENER
            slot = NO_SLOT
            if limited:
                slot = self._claim(source)
                if slot < 0 or (of_source := self._sources[slot]) >= limited:
                    return Refusal.SOURCE
                self._sources[slot] = of_source + 1
            counts[cell] = of_listener + 1
            counts[own] = held + 1
            return Lease(self, listener, slot)
        if limited:
            return self._acquire(listener, source)
        row = self._listener_rows[listener]
        counts[column] = counts[column] + 1 & MASK  # odd: deciding
        counts[own] = held + 1
        counts[row[column]] += 1
        self._fence()
        total = 0
        for cell in self._instance_row:
            total += counts[cell]
        if total <= self._instance:
            if limit:
                total = 0
                for cell in row:
                    total += counts[cell]
            if total <= limit or not limit:
                counts[column] = counts[column] + 1 & MASK
                return Lease(self, listener, NO_SLOT)
        return self._acquire(listener, 0, announced=True)

    def acquire_for(self, customer: int, listener: int, source: int = 0) -> Lease | Refusal:
        """Admit one connection of the customer with that slot, as `acquire` does."""
        counts, column, own, customers = self._counts, self._column, self._own, self._customers
        held = counts[own]
        if held >= self._capacity:
            return Refusal.CAPACITY
        limit = self._customer_limits[customer]
        if self._alone:
            of_customer = customers[customer]
            if of_customer >= limit > 0:
                return Refusal.CUSTOMER
            lease = self.acquire(listener, source)
            if type(lease) is not Lease:
                return lease
            customers[customer] = of_customer + 1
            return CustomerLease(self, listener, lease._slot, customer)
        if source and self._per_source:
            return self._acquire(listener, source, customer)
        # As in `acquire`, the fast path is written out.
        row, first = self._listener_rows[listener], customer * self._workers
        counts[column] = counts[column] + 1 & MASK  # odd: deciding
        counts[own] = held + 1
        counts[row[column]] += 1
        customers[first + column] += 1
        self._fence()
        if not limit or sum(customers[first : first + self._workers]) <= limit:
            total = 0
            for cell in self._instance_row:
                total += counts[cell]
            if total <= self._instance:
                limit = self._listener_limits[listener]
                if limit:
                    total = 0
                    for cell in row:
                        total += counts[cell]
                if total <= limit or not limit:
                    counts[column] = counts[column] + 1 & MASK
                    return CustomerLease(self, listener, NO_SLOT, customer)
        return self._acquire(listener, 0, customer, announced=True)

    def _acquire(
        self, listener: int, source: int, customer: int = NO_CUSTOMER, *, announced: bool = False
    ) -> Lease | Refusal:
        """The full algorithm. `announced`: the connection is announced already, and the sum was above the limit."""
        counts, column = self._counts, self._column
        refusal: Refusal | None = None
        slot = NO_SLOT
        for _ in range(SPINS):
            if not announced:
                counts[column] = (counts[column] + 1) & MASK  # odd: deciding
                slot = self._announce(listener, source, customer)
                if slot == BUCKET_FULL:
                    counts[column] = (counts[column] + 1) & MASK
                    return Refusal.SOURCE
                self._fence()
                refusal = self._over(listener, source, 0, customer)
                if refusal is None:
                    counts[column] = (counts[column] + 1) & MASK
                    return self._lease(listener, slot, customer)
            announced = False
            refusal, final = self._decide(listener, source, customer)
            if refusal is None:
                counts[column] = (counts[column] + 1) & MASK
                return self._lease(listener, slot, customer)
            self._lease(listener, slot, customer).release()
            counts[column] = (counts[column] + 1) & MASK
            if final or not self._wait_for_lower_rivals():
                break
        return refusal or Refusal.INSTANCE

    def forget_customers(self) -> None:
        """Let go of the customers' limits, when others take their place; leases can still be released."""
        self._customer_limits = NO_CELLS

    def held(self) -> int:
        """Number of connections that this worker holds now."""
        return self._counts[self._own]

    def _announce(self, listener: int, source: int, customer: int = NO_CUSTOMER) -> int:
        """Add one to this worker's counts. Returns the source's slot, NO_SLOT, or BUCKET_FULL if nothing was added."""
        counts = self._counts
        slot = NO_SLOT
        if source:
            slot = self._claim(source)
            if slot == BUCKET_FULL:
                return slot
            self._sources[slot] += 1
        counts[self._own] += 1
        counts[self._listener_cells[listener]] += 1
        if customer != NO_CUSTOMER:
            self._customers[customer * self._workers + self._column] += 1
        return slot

    def _lease(self, listener: int, slot: int, customer: int) -> Lease:
        if customer == NO_CUSTOMER:
            return Lease(self, listener, slot)
        return CustomerLease(self, listener, slot, customer)

    def _decide(self, listener: int, source: int, customer: int = NO_CUSTOMER) -> tuple[Refusal | None, bool]:
        """(None, True) to admit, (the limit reached, True) to refuse, (…, False) to give way to a lower column."""
        refusal: Refusal | None = None
        for _ in range(SPINS):
            before = self._rivals()
            refusal = self._over(listener, source, 0, customer)
            if refusal is None:
                return None, True
            undecided = sum(number & 1 for number in before)
            if undecided:
                certain = self._over(listener, source, undecided, customer)
            else:
                certain = refusal
            if self._rivals() != before:
                continue
            if certain is not None:
                return certain, True
            if any(number & 1 for number in before[: self._column]):
                return refusal, False
        return refusal, True

    def _over(self, listener: int, source: int, undecided: int, customer: int = NO_CUSTOMER) -> Refusal | None:
        """The first limit that the announced counts exceed by more than `undecided`."""
        plan, counts = self._plan, self._counts
        if customer != NO_CUSTOMER and (limit := self._customer_limits[customer]):
            first = customer * self._workers
            if sum(self._customers[first : first + self._workers]) - undecided > limit:
                return Refusal.CUSTOMER
        total = -undecided
        for cell in self._instance_row:
            total += counts[cell]
        if total > plan.instance:
            return Refusal.INSTANCE
        limit = plan.listeners[listener]
        if limit:
            total = -undecided
            for cell in self._listener_rows[listener]:
                total += counts[cell]
            if total > limit:
                return Refusal.LISTENER
        if source and self._source_total(source) - undecided > plan.per_source:
            return Refusal.SOURCE
        return None

    def _rivals(self) -> list[int]:
        """The sequence numbers of all columns, with 0 (even) for this one."""
        numbers = [self._counts[column] for column in range(self._plan.workers)]
        numbers[self._column] = 0
        return numbers

    def _wait_for_lower_rivals(self) -> bool:
        """Wait for the deciding workers in lower columns; False if one does not finish, such as a stopped process."""
        return any(not any(self._counts[column] & 1 for column in range(self._column)) for _ in range(SPINS))

    def _bucket(self, column: int, source: int) -> int:
        """The first cell of the bucket for `source` in a column's region."""
        return column * self._region + (source & self._bucket_mask) * self._ways

    def _source_total(self, source: int) -> int:
        """Connections of a source over all workers."""
        total = 0
        for column in range(self._plan.workers):
            start = self._bucket(column, source)
            # Copied and searched in C: a loop over the cells would cost more than the rest of this method.
            hashes = list(self._hashes[start : start + self._ways])
            if source in hashes:
                total += self._sources[start + hashes.index(source)]
        return total

    def _claim(self, source: int) -> int:
        """This worker's slot for `source`: its present slot, else a free one, else BUCKET_FULL."""
        start = self._bucket(self._column, source)
        if self._hashes[start] == source:  # most buckets have at most one source
            return start
        hashes = list(self._hashes[start : start + self._ways])
        if source in hashes:
            return start + hashes.index(source)
        counts = list(self._sources[start : start + self._ways])
        if 0 not in counts:
            return BUCKET_FULL
        slot = start + counts.index(0)
        self._hashes[slot] = source
        return slot
