"""The supervisor's side of customers: tables over reloads, slots that change hands, counters, and their metrics."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from relay.core import customer_counters as cells
from relay.core import customers as core_customers
from relay.core.counters import Layout
from relay.core.customer_slots import CustomerSlots, NoSlot
from relay.core.customers import CustomerTable
from relay.core.limit_table import LimitPlan
from relay.core.limits import Lease, Refusal
from relay.core.rates import Rate, RatePlan
from relay.ipc import memory
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from relay.outcome import REFUSALS, Outcome
from relay.settings.model import Settings, load
from relay.supervisor.admin import customer_status
from relay.supervisor.admin.customer_metrics import EOF, with_customers
from relay.supervisor.admin.customer_status import PART
from relay.supervisor.admin.status_schema import RelayStatus
from relay.supervisor.customers import CustomerTables
from relay.supervisor.instance import Instance
from relay.worker.connection.customers import Customers

PLAN = LimitPlan(workers=2, instance=100, capacity=50, listeners=(0, 0), customers=core_customers.SLOTS)
RATES = RatePlan(customers=core_customers.SLOTS)


def loaded(*tables: dict[str, object]) -> Settings:
    return load(None, {"RELAY_UPSTREAM": "hub.example", "RELAY_CUSTOMERS": json.dumps(tables)})


class Desk:
    """Customers' tables over real shared memory, and the workers' sides of them."""

    def __init__(self) -> None:
        self.table = Table.create(PLAN, Layout(3, 1, 1), len(REFUSALS))
        self.rates = RateTable.create(RATES)
        self.tables = CustomerTables(self.table, self.rates, most=50)
        self.workers = [Customers(block, self.table.customer_layout) for block in self.table.customer_blocks]

    def close(self) -> None:
        for descriptor in {self.table.descriptor, self.rates.descriptor, self.tables.descriptor} - {-1}:
            os.close(descriptor)

    def reload(self, *tables: dict[str, object], workers: tuple[int, ...] = (0, 1)) -> None:
        """Put settings into effect; `workers` get to know."""
        settings = loaded(*tables)
        self.tables.switch(self.tables.prepare(settings, {}))
        for number in workers:
            self.applied(number)

    def applied(self, number: int) -> None:
        compiled = None
        if self.tables.number:
            compiled = CustomerTable(memory.mapped(os.dup(self.tables.descriptor)))
        limits = self.table.limits(number, customer_limits=compiled.limits if compiled is not None else ())
        self.workers[number].use(compiled, self.tables.number, limits, self.rates.rates(alone=False))

    def connect(self, host: str, worker: int = 0) -> tuple[int, Lease | None]:
        """One connection: its customer's slot, and its lease."""
        customers = self.workers[worker]
        slot = customers.find(host, None)
        assert slot != core_customers.NOBODY
        customers.accepted(slot)
        result = customers.admit(slot, 0, 0)
        if not isinstance(result, Lease):
            customers.closed(slot, Outcome.REFUSED_CUSTOMER if result is Refusal.CUSTOMER else Outcome.REFUSED_INSTANCE)
            return slot, None
        return slot, result

    def end(self, slot: int, lease: Lease | None, worker: int = 0) -> None:
        assert lease is not None
        lease.release()
        self.workers[worker].closed(slot, Outcome.OK)


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


def customer(name: str, network: str = "", **more: object) -> dict[str, object]:
    return {"name": name, "networks": [network] if network else [], **more}


def test_without_customers_there_is_no_table(desk: Desk) -> None:
    desk.reload()
    assert (desk.tables.number, desk.tables.descriptor) == (0, -1)
    assert not desk.workers[0].any
    assert desk.workers[0].find("10.0.0.1", None) == core_customers.NOBODY


def test_what_settings_say_is_what_workers_have(desk: Desk) -> None:
    prepared = desk.tables.prepare(
        loaded(
            customer("a", "10.0.0.0/8", max_connections=7, connect_rate=4.0, listeners=["amqp"]),
            customer("b", connect_rate=4.0, connect_burst=9),
        ),
        {"amqp": 0, "https": 1},
    )
    table = CustomerTable(memory.mapped(prepared.descriptor))
    assert table.limits[0] == 7
    assert (table.tolerances[0], table.tolerances[1]) == (Rate(4.0, 4.0).tolerance, Rate(4.0, 9.0).tolerance)
    assert [table.may_use(0, number) for number in range(3)] == [True, False, False]
    assert [table.may_use(1, number) for number in range(3)] == [True, True, True]


def test_a_removed_customer_keeps_name_and_counters_as_long_as_it_has_connections(desk: Desk) -> None:
    desk.reload(customer("a", "10.0.0.1"), customer("b", "10.0.0.2"))
    slot, lease = desk.connect("10.0.0.1")
    desk.reload(customer("b", "10.0.0.2"))
    assert desk.workers[0].find("10.0.0.1", None) == core_customers.NOBODY
    assert desk.workers[0].name(slot) == "a"
    assert not desk.tables.idle(slot)
    assert desk.tables.counts(slot).active == 1
    desk.end(slot, lease)
    assert desk.tables.idle(slot)
    desk.reload(customer("a", "10.0.0.1"))
    assert desk.tables.slots.present["a"] == slot
    assert desk.tables.counts(slot).accepted == 1, "its counters go on"


def test_a_slot_changes_hands_only_when_every_worker_knows_and_begins_anew(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.tables.slots = CustomerSlots(most=1)
    desk.reload(customer("a", "10.0.0.1", connect_rate=0.001, connect_burst=1))
    desk.end(*desk.connect("10.0.0.1"))
    assert desk.connect("10.0.0.1")[1] is None, "its rate is used up"
    desk.reload(workers=(0,))
    with pytest.raises(NoSlot):
        desk.tables.prepare(loaded(customer("b")), {})
    desk.applied(1)
    desk.reload(customer("b", "10.0.0.2", connect_rate=0.001, connect_burst=1))
    assert desk.tables.slots.present == {"b": 0}
    assert desk.tables.counts(0).accepted == 0
    slot, lease = desk.connect("10.0.0.2")
    assert lease is not None
    desk.tables.look([slot])
    assert desk.tables.counts(slot).accepted == 1
    assert desk.workers[0].name(slot) == "b"


def test_a_dead_worker_s_connections_have_ended_and_its_counters_stay(desk: Desk) -> None:
    desk.reload(customer("a", "10.0.0.1", max_connections=3))
    for _ in range(3):
        desk.connect("10.0.0.1", worker=0)
    slot, lease = desk.connect("10.0.0.1", worker=1)
    assert lease is None
    desk.workers[0].moved(slot, 100, 7)
    desk.tables.retire(0)
    assert not any(desk.table.customer_blocks[0][: desk.table.customer_layout.totals(1)])
    assert desk.connect("10.0.0.1", worker=1)[1] is not None, "its places are free"
    desk.tables.look([slot])
    counts = desk.tables.counts(slot)
    assert (counts.active, counts.accepted, counts.bytes_up, counts.bytes_down) == (1, 5, 100, 7)
    assert dict(zip(REFUSALS, counts.refused, strict=True))[Outcome.REFUSED_CUSTOMER] == 1
    assert not desk.tables.idle(slot), "its successor does not know the present table yet"


def scrape(desk: Desk, settings: Settings, body: bytes) -> str:
    instance = cast(Instance, SimpleNamespace(settings=settings, customers=desk.tables))
    return asyncio.run(with_customers(body, instance)).decode()


@pytest.mark.parametrize("body", [b"", EOF])
def test_metrics_are_those_of_customers_who_had_a_connection(desk: Desk, body: bytes) -> None:
    tables = (
        customer("contoso", "10.0.0.1", max_connections=1),
        customer("fabrikam", "10.0.0.2"),
        customer("quiet", "10.0.0.3", max_connections=5),
    )
    desk.reload(*tables, customer("gone", "10.0.0.4"), customer("leaving", "10.0.0.5"))
    desk.connect("10.0.0.1")
    desk.connect("10.0.0.1", worker=1)
    desk.workers[0].moved(0, 5, 6)
    desk.end(*desk.connect("10.0.0.2"))
    desk.end(*desk.connect("10.0.0.4"))
    desk.connect("10.0.0.5")
    desk.reload(*tables)
    families = openmetrics_families if body else text_families
    found = {
        (sample.name.removeprefix("relay_customer_"), *sample.labels.values()): sample.value
        for family in families(scrape(desk, loaded(*tables), body))
        for sample in family.samples
    }
    assert found == {
        ("connections_active", "contoso"): 1,
        ("connections_active", "fabrikam"): 0,
        ("connections_active", "leaving"): 1,
        ("connections_limit", "contoso"): 1,
        ("connections_accepted_total", "contoso"): 2,
        ("connections_accepted_total", "fabrikam"): 1,
        ("connections_accepted_total", "leaving"): 1,
        ("connections_refused_total", "contoso", "refused_customer"): 1,
        ("bytes_total", "contoso", "up"): 5,
        ("bytes_total", "contoso", "down"): 6,
        ("bytes_total", "fabrikam", "up"): 0,
        ("bytes_total", "fabrikam", "down"): 0,
        ("bytes_total", "leaving", "up"): 0,
        ("bytes_total", "leaving", "down"): 0,
    }


def test_a_scrape_of_thousands_gives_the_loop_turns(desk: Desk) -> None:
    many = 2000
    settings = loaded(*(customer(f"c{number}", f"10.0.{number >> 8}.{number & 255}") for number in range(many)))
    desk.tables.switch(desk.tables.prepare(settings, {}))
    layout = desk.table.customer_layout
    for slot in range(many):
        desk.table.customer_blocks[0][layout.totals(slot) + cells.ACCEPTED] = 1
    instance = cast(Instance, SimpleNamespace(settings=settings, customers=desk.tables))

    async def both() -> int:
        rendering = asyncio.ensure_future(with_customers(b"", instance))
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await rendering).count(b"relay_customer_connections_active{") == many
        return turns

    assert asyncio.run(both()) >= many // PART


def whole_status(desk: Desk, settings: Settings) -> Any:
    instance = cast(Instance, SimpleNamespace(settings=settings, customers=desk.tables))
    return json.loads(asyncio.run(customer_status.with_customers(cast(RelayStatus, {"state": "ready"}), instance)))


def test_status_has_the_customers_who_had_a_connection(desk: Desk) -> None:
    tables = (customer("contoso", "10.0.0.1", max_connections=1), customer("quiet", "10.0.0.3"))
    assert whole_status(desk, loaded()) == {"state": "ready", "customers": []}
    desk.reload(*tables, customer("gone", "10.0.0.4"), customer("leaving", "10.0.0.5", max_connections=3))
    desk.connect("10.0.0.1")
    desk.connect("10.0.0.1", worker=1)
    desk.workers[0].moved(0, 5, 6)
    desk.end(*desk.connect("10.0.0.4"))
    desk.connect("10.0.0.5")
    desk.reload(*tables)
    contoso = {"name": "contoso", "active": 1, "accepted": 2, "max_connections": 1, "bytes_up": 5, "bytes_down": 6}
    leaving = {"name": "leaving", "active": 1, "accepted": 1, "max_connections": 0, "bytes_up": 0, "bytes_down": 0}
    assert whole_status(desk, loaded(*tables)) == {
        "state": "ready",
        "customers": [contoso | {"refused": {"refused_customer": 1}}, leaving | {"refused": {}}],
    }
