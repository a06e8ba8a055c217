"""The supervisor's side of the customers: their slots, the table that workers look them up in, and their counters.

A reload prepares the next table in its thread (`prepare`), which takes a quarter of a second for five thousand
customers, and switches to it on the loop (`switch`), which costs next to nothing. Walks over counters take the slots
that the caller names, so that a long one can be made in parts.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from relay.core import customer_counters as cells
from relay.core.customer_counters import clear, fold, look, unfinished
from relay.core.customer_slots import CustomerSlots
from relay.core.customers import Customer, CustomerTable, compile_table
from relay.core.limit_table import Cells, clear_customers
from relay.core.rates import Rate
from relay.ipc import memory
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.settings.model import Settings


@dataclass(frozen=True, slots=True)
class PreparedCustomers:
    """The slots and the table of new settings; `descriptor` is the table's, -1 if there never were customers."""

    slots: CustomerSlots
    reused: tuple[int, ...]
    descriptor: int
    limits: Sequence[int] = ()  # max_connections by slot; 0: no limit

    def discard(self) -> None:
        """Close the table that no reload has put into effect."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class CustomerCounts:
    """The counters of one customer over all workers, those that have ended included."""

    active: int
    accepted: int
    bytes_up: int
    bytes_down: int
    refused: tuple[int, ...]  # by `outcome.REFUSALS`; empty if there are none


def compiled(settings: Settings, slots: CustomerSlots, numbers: Mapping[str, int], listeners: int) -> bytes:
    """The table of the settings' customers; `numbers` are the listeners' by name, `listeners` how many there may be."""
    given = (
        Customer(
            slots.present[item.name],
            item.name,
            item.networks,
            item.link_ids,
            item.max_connections,
            Rate(item.connect_rate, float(item.connect_burst or item.connect_rate)),
            [numbers[name] for name in item.listeners] if item.listeners else None,
        )
        for item in settings.customers
    )
    # Removed customers keep their names, for connections that they still have.
    removed = (Customer(slot, name, listeners=()) for name, slot in slots.removed.items())
    return compile_table(chain(given, removed), listeners)


class CustomerTables:
    """Slots, table and counters of the customers. `most` is how many connections a worker can have at most."""

    def __init__(self, table: Table, rates: RateTable, most: int) -> None:
        self._table = table
        self._rates = rates
        self._most = most
        self._layout = table.customer_layout
        self._seen = [_cells(self._layout.size) for _ in table.customer_blocks]  # snapshots of the workers' blocks
        self._retired = _cells(self._layout.size)  # of workers that have ended
        self.slots = CustomerSlots()
        self.limits: Sequence[int] = ()  # the customers' max_connections by slot; 0: no limit
        self.descriptor = -1  # of the compiled table
        self.number = 0  # of the compiled table; 0: there never were customers

    def prepare(self, settings: Settings, listener_numbers: Mapping[str, int]) -> PreparedCustomers:
        """Give the customers of the settings their slots, and compile their table. Raises NoSlot and OSError.

        `listener_numbers` are those before the reload; new listeners get the next ones.
        """
        change = self.slots.change([item.name for item in settings.customers], self.idle)
        slots = change.slots
        if not slots.used:
            return PreparedCustomers(slots, (), -1)
        numbers = dict(listener_numbers)
        for item in settings.listeners:
            numbers.setdefault(item.name, len(numbers))
        content = compiled(settings, slots, numbers, self._table.layout.listeners)
        limits = array("I", CustomerTable(content).limits)
        return PreparedCustomers(slots, change.reused, memory.read_only("relay-customers", content), limits)

    def switch(self, prepared: PreparedCustomers) -> None:
        """Use prepared slots and their table from now on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.slots, self.limits, self.descriptor = prepared.slots, prepared.limits, prepared.descriptor
        self.number += prepared.descriptor >= 0
        for slot in prepared.reused:
            self._rates.forget_customer(slot)
        for block in (*self._table.customer_blocks, *self._seen, self._retired):
            clear(self._layout, block, prepared.reused)

    def idle(self, slot: int) -> bool:
        """Whether a removed customer has no connection, and every worker knows that the customer is removed.

        A worker that has not yet got the present table could still admit connections of the customer.
        """
        self.look((slot,))
        return all(seen[cells.TABLE] == self.number and not unfinished(self._layout, seen, slot) for seen in self._seen)

    def look(self, slots: Iterable[int]) -> None:
        """Update the snapshots of these slots."""
        wanted = list(slots)
        for block, seen in zip(self._table.customer_blocks, self._seen, strict=True):
            look(self._layout, block, seen, wanted, self._most)

    def counts(self, slot: int) -> CustomerCounts:
        """The counters of a slot, as of the last `look`."""
        rows = [*self._seen, self._retired]
        start, refusals = self._layout.totals(slot), self._layout.refusals(slot)
        accepted, ended, up, down, refused = (sum(row[start + cell] for row in rows) for cell in range(cells.TOTALS))
        reasons: Sequence[int] = ()
        if refused:
            having = [row for row in rows if row[start + cells.REFUSED]]
            reasons = [sum(row[refusals + number] for row in having) for number in range(self._layout.reasons)]
        return CustomerCounts(accepted - ended, accepted, up, down, tuple(reasons))

    def retire(self, worker: int) -> None:
        """Keep the counters of a worker that has ended, count its connections as ended, and give back its places."""
        block, used = self._table.customer_blocks[worker], range(self.slots.used)
        if not used:
            return
        look(self._layout, block, self._seen[worker], used, self._most)
        fold(self._layout, self._seen[worker], self._retired, used)
        clear(self._layout, block, used)
        block[cells.TABLE] = 0
        clear_customers(self._table.plan, worker, self._table.customers, self.slots.used)


def _cells(size: int) -> Cells:
    """Cells of 64 bits, zero, of which only those that are touched take memory."""
    return memoryview(mmap.mmap(-1, 8 * size)).cast("Q") if size else []
