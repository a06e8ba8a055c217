"""The customers of /status, written in parts, since thousands of customers must not hold the supervisor's loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

from relay.outcome import REFUSALS
from relay.supervisor.admin.status_schema import CustomerStatus, RelayStatus
from relay.supervisor.customers import CustomerCounts
from relay.supervisor.instance import Instance

PART = 100  # customers between two turns of the loop: some milliseconds of a slow machine


async def appeared(instance: Instance) -> AsyncIterator[list[tuple[str, int, CustomerCounts]]]:
    """Name, limit and counters of the customers who had a connection, in parts; the loop gets turns in between.

    A customer that a reload has removed is one of them while it has connections.
    """
    customers = instance.customers
    slots, limits = customers.slots, customers.limits  # a reload in between makes new ones
    everybody = list(slots.names())
    for start in range(0, len(everybody), PART):
        part = everybody[start : start + PART]
        customers.look(slot for _, slot in part)
        counted = [(name, limits[slot], customers.counts(slot)) for name, slot in part]
        yield [item for item in counted if item[2].active or (item[2].accepted and item[0] in slots.present)]
        await asyncio.sleep(0)


def by_reason(counts: CustomerCounts) -> Iterator[tuple[str, int]]:
    """The outcomes that refused connections of a customer, and how many."""
    for outcome, count in zip(REFUSALS, counts.refused, strict=False):
        if count:
            yield outcome.label, count


async def with_customers(status: RelayStatus, instance: Instance) -> str:
    """A status as JSON, with `customers`."""
    parts = [json.dumps([_status(*item) for item in part])[1:-1] async for part in appeared(instance) if part]
    return f'{json.dumps(status)[:-1]}, "customers": [{", ".join(parts)}]}}'


def _status(name: str, limit: int, counts: CustomerCounts) -> CustomerStatus:
    return {
        "name": name,
        "active": counts.active,
        "accepted": counts.accepted,
        "max_connections": limit,
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        "refused": dict(by_reason(counts)),
    }
