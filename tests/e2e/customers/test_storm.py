"""Reload after reload with customers that come, go and change, while 2,000 connections pass traffic."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.customers.test_customers import customer, reload
from tests.support.clients import connect, crowd, exchange, receive, refused
from tests.support.harness import Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

PATIENCE = 180.0  # seconds: some fifteen on a machine with nothing else to do
CUSTOMERS = 20
EACH = 100  # connections
RELOADS = 40
SOURCES = [f"127.0.1.{number + 1}" for number in range(CUSTOMERS)]
NOBODY = "127.0.3.1"


@contextmanager
def meanwhile(turn: Callable[[], None]) -> Iterator[None]:
    """Call `turn` again and again in a thread of its own; what it raises is raised at the end."""
    ended, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            while not ended.is_set():
                turn()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for failure in failures:
        raise failure


def storm(rng: random.Random, number: int) -> str:
    """Customers in another order, a third of the full ones missing, one's network another's, and two hundred others.

    A customer that is there has a limit at or below the connections that it has, so that nobody new is ever let in from
    SOURCES: as a customer's, who is full, or as nobody's.
    """
    names = [f"full-{at}" for at in range(CUSTOMERS)]
    networks = dict(zip(names, SOURCES, strict=True))
    one, other = rng.sample(names, 2)
    networks[one], networks[other] = networks[other], networks[one]
    present = rng.sample(names, CUSTOMERS - CUSTOMERS // 3)
    tables = [customer(name, [networks[name]], f"max_connections = {rng.randint(1, EACH)}") for name in present]
    for at in range(200):
        rest = f"10.{number}.{at}.0/24"
        tables.append(
            customer(f"passing-{rng.randint(0, 10_000)}-{at}", [rest], f"connect_rate = {rng.randint(1, 9)}.0")
        )
    rng.shuffle(tables)
    return "".join(tables)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_reloads_cut_nobody_and_let_nobody_in(echo: Echo, start: Start) -> None:
    text = settings(listener(echo.address), workers=2)
    at_first = "".join(customer(f"full-{n}", [SOURCES[n]], f"max_connections = {EACH}") for n in range(CUSTOMERS))
    relay = start(text + at_first)
    rng = random.Random(4711)
    rounds = tries = 0
    with crowd(relay.address(), EACH, SOURCES) as clients:
        assert (len(clients.served), clients.refused) == (CUSTOMERS * EACH, 0)

        def pass_traffic() -> None:
            nonlocal rounds
            for client in clients.served:
                client.sendall(b"ping")
            for client in clients.served:
                assert receive(client, 4) == b"ping"
            rounds += 1

        def try_to_get_in() -> None:
            nonlocal tries
            for source in (*rng_sources.sample(SOURCES, 3), NOBODY):
                assert refused(relay.address(), source), source
                tries += 1

        rng_sources = random.Random(4712)
        with meanwhile(pass_traffic), meanwhile(try_to_get_in):
            for number in range(RELOADS):
                reload(relay, text + storm(rng, number))
            so_far = rounds
            while rounds < so_far + 2:  # all connections once more after the last reload
                threading.Event().wait(0.01)
        assert tries > RELOADS
        reload(relay, text + at_first)
        counted = {item["name"]: item["active"] for item in relay.status()["customers"]}
        assert counted == dict.fromkeys((f"full-{n}" for n in range(CUSTOMERS)), EACH)
    relay.wait_active(0)
    outcomes = {name: count for name, count in relay.status()["connections"]["outcomes"].items() if count}
    assert outcomes["ok"] == CUSTOMERS * EACH
    assert sum(outcomes.values()) == CUSTOMERS * EACH + tries
    assert set(outcomes) == {"ok", "refused_customer", "refused_access"}
    with crowd(relay.address(), EACH + 5, SOURCES) as clients:
        assert (len(clients.served), clients.refused) == (CUSTOMERS * EACH, 5 * CUSTOMERS), "every place was given back"
    with connect(relay.address(), SOURCES[0]) as client:
        assert exchange(client) == b"ping"
