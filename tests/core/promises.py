"""What the limits promise, said of what workers hold: plain counting, without a look at how the limits do it."""

from __future__ import annotations

from collections.abc import Iterator

from relay.core import limit_table
from relay.core.limits import NO_CUSTOMER, Refusal
from tests.core.stepping import Acquire, Place, System


class Violation(AssertionError):
    """A promise is broken; the text has the schedule that breaks it."""


def check_limits(system: System, held: list[tuple[Place, ...]]) -> None:
    """Raises Violation if what each worker holds is more than a limit allows."""
    plan = system.plan
    everybody = [place for places in held for place in places]
    if len(everybody) > plan.instance:
        raise Violation(f"{len(everybody)} held, the instance's limit is {plan.instance}")
    for listener, limit in enumerate(plan.listeners):
        if limit and sum(place.listener == listener for place in everybody) > limit:
            raise Violation(f"listener {listener} holds more than {limit}")
    if plan.per_source:
        for source in {place.source for place in everybody}:
            if sum(place.source == source for place in everybody) > plan.per_source:
                raise Violation(f"source {source} holds more than {plan.per_source}")
    for customer, limit in enumerate(system.customer_limits):
        if limit and sum(place.customer == customer for place in everybody) > limit:
            raise Violation(f"customer {customer} holds more than {limit}")
    for column, places in enumerate(held):
        if len(places) > plan.capacity:
            raise Violation(f"worker {column} holds more than its capacity {plan.capacity}")


def reached_limits(system: System, held: list[tuple[Place, ...]], column: int, wanted: Acquire) -> Iterator[Refusal]:
    """The limits that leave no room for one more, and a source's bucket without a free slot."""
    plan = system.plan
    everybody = [place for places in held for place in places]
    if len(held[column]) >= plan.capacity:
        yield Refusal.CAPACITY
    if len(everybody) >= plan.instance:
        yield Refusal.INSTANCE
    limit = plan.listeners[wanted.listener]
    if limit and sum(place.listener == wanted.listener for place in everybody) >= limit:
        yield Refusal.LISTENER
    limit = system.customer_limits[wanted.customer] if wanted.customer != NO_CUSTOMER else 0
    if limit and sum(place.customer == wanted.customer for place in everybody) >= limit:
        yield Refusal.CUSTOMER
    if plan.per_source:
        mask = plan.source_buckets - 1
        others = {p.source for p in held[column] if (p.source ^ wanted.source) & mask == 0} - {wanted.source}
        same = sum(place.source == wanted.source for place in everybody)
        if same >= plan.per_source or len(others) >= limit_table.WAYS:
            yield Refusal.SOURCE


def table_of(system: System, held: list[tuple[Place, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the counts (after the row of sequence numbers), and the sources' and customers' counts, have to be."""
    plan = system.plan
    counts = [0] * (plan.count_cells - plan.workers)
    sources = [0] * plan.source_cells
    customers = [0] * plan.customer_cells
    for column, places in enumerate(held):
        for place in places:
            counts[column] += 1
            counts[(1 + place.listener) * plan.workers + column] += 1
            if place.slot >= 0:
                sources[place.slot] += 1
            if place.customer != NO_CUSTOMER:
                customers[place.customer * plan.workers + column] += 1
    return tuple(counts), (*sources, *customers)
