"""Customers, with real connections: who is let in, limits over all workers, reloads, and a worker that dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence

from relay.core import proxy_header
from tests.support.clients import connect, crowd, exchange, refused
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

SLOW = 0.01  # per second: no second token while a test runs


def customer(name: str, networks: Sequence[str] = (), more: str = "") -> str:
    return f'[[customers]]\nname = "{name}"\nnetworks = {json.dumps(list(networks))}\n{more}\n'


def reload(relay: Relay, text: str) -> None:
    relay.config.write_text(text)
    assert relay.post("/reload")[0] == 200


def test_customers_are_let_in_and_nobody_else(echo: Echo, start: Start) -> None:
    customers = customer("wide", ["127.0.0.0/24"]) + customer("narrow", ["127.0.0.9"], 'listeners = ["other"]')
    tables = '[access]\ndeny = ["127.0.0.5"]\n'
    relay = start(
        settings(listener(echo.address), listener(echo.address, name="other"), workers=2, tables=tables) + customers
    )
    names: dict[str, str] = {}
    for source, name, customers_name in (
        ("127.0.0.1", "main", "wide"),
        ("127.0.0.9", "other", "narrow"),
        ("127.0.0.2", "other", "wide"),
    ):
        with connect(relay.address(name), source) as client:
            assert exchange(client) == b"ping"
            names["{}:{}".format(*client.getsockname())] = customers_name
    lines = {line["client"]: line for line in relay.access(3)}
    assert {client: (line["customer"], line["outcome"]) for client, line in lines.items()} == {
        client: (name, "ok") for client, name in names.items()
    }
    assert refused(relay.address(), "127.0.0.9"), "not tried again as the wider one"
    assert refused(relay.address(), "127.0.0.5"), "deny wins"
    assert refused(relay.address(), "127.0.1.1"), "nobody's"
    relay.wait_outcomes({"ok": 3, "refused_access": 3})


def test_limits_and_rates_hold_over_all_workers(echo: Echo, start: Start) -> None:
    customers = customer("few", ["127.0.0.1", "127.0.0.2"], "max_connections = 5")
    customers += customer("slow", ["127.0.0.3"], f"connect_rate = {SLOW}\nconnect_burst = 7")
    customers += customer("free", ["127.0.0.4"])
    relay = start(settings(listener(echo.address), workers=2) + customers)
    with crowd(relay.address(), 20, ["127.0.0.1", "127.0.0.2"]) as few:
        assert (len(few.served), few.refused) == (5, 35)
        with crowd(relay.address(), 20, ["127.0.0.3"]) as slow, crowd(relay.address(), 20, ["127.0.0.4"]) as free:
            assert (len(slow.served), slow.refused) == (7, 13)
            assert (len(free.served), free.refused) == (20, 0)
    relay.wait_outcomes({"ok": 32, "refused_customer": 35, "refused_customer_rate": 13})
    metrics = relay.metrics()

    def value(name: str, **labels: str) -> float:
        return metrics.value(f"relay_customer_connections_{name}", **labels)

    assert (value("accepted_total", customer="few"), value("active", customer="few")) == (40, 0)
    assert value("refused_total", customer="few", reason="refused_customer") == 35
    assert value("refused_total", customer="slow", reason="refused_customer_rate") == 13
    assert (value("limit", customer="few"), value("accepted_total", customer="free")) == (5, 20)
    assert metrics.value("relay_customer_bytes_total", customer="slow", direction="down") == 7 * len("me too")
    wanted = {"active": 0, "accepted": 40, "max_connections": 5, "refused": {"refused_customer": 35}}
    shown = {item["name"]: item for item in relay.status()["customers"]}
    assert {key: shown["few"][key] for key in wanted} == wanted
    assert (sorted(shown), shown["free"]["refused"]) == (["few", "free", "slow"], {})
    with crowd(relay.address(), 10, ["127.0.0.2"]) as again:
        assert len(again.served) == 5, "every place was given back"


def test_behind_a_proxy_the_limit_is_exact_too(echo: Echo, start: Start) -> None:
    both_sides = 'proxy_protocol = "require"\nsend_proxy_protocol = "v2"'  # so the header is echoed as well
    text = settings(listener(echo.address, more=both_sides), workers=2)
    relay = start(text + customer("few", ["203.0.113.0/24"], "max_connections = 4"))
    header = proxy_header.build(2, ("203.0.113.7", 4711), ("203.0.113.200", 8883))
    with crowd(relay.address(), 30, data=header + b"hello") as clients:
        assert (len(clients.served), clients.refused) == (4, 26)
    relay.wait_outcomes({"ok": 4, "refused_customer": 26})


def test_a_reload_adds_changes_and_removes_customers_and_cuts_nobody(echo: Echo, start: Start) -> None:
    text = settings(listener(echo.address), workers=2)
    a, b = customer("a", ["127.0.0.1"]), customer("b", ["127.0.0.2"])
    relay = start(text + a)
    assert refused(relay.address(), "127.0.0.2")
    with crowd(relay.address(), 3, ["127.0.0.1"]) as clients:
        reload(relay, text + customer("a", ["127.0.0.1"], "max_connections = 2") + b)
        assert refused(relay.address(), "127.0.0.1"), "lowered, and three are there"
        with connect(relay.address(), "127.0.0.2") as client:
            assert exchange(client) == b"ping"
        reload(relay, text + b)
        assert refused(relay.address(), "127.0.0.1"), "no customer's any more"
        reload(relay, text + b + customer("a", ["127.0.0.3"], "max_connections = 4"))
        with crowd(relay.address(), 3, ["127.0.0.3"]) as more:
            assert len(more.served) == 1, "the name has its slot back, and its three connections count"
        for client in clients.served:
            assert exchange(client) == b"ping"
    relay.wait_active(0)
    relay.config.write_text(text)
    code, answer = relay.post("/reload")
    assert code != 200
    assert "customers: the reload would remove the last of them" in answer
    relay.expected_errors.add("reload failed")
    reload(relay, text + '[access]\nallow = ["127.0.0.5"]\n')
    assert refused(relay.address(), "127.0.0.2")
    with connect(relay.address(), "127.0.0.5") as client:
        assert exchange(client) == b"ping"


def test_a_dead_workers_places_are_given_back(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2) + customer("few", ["127.0.0.1"], "max_connections = 6"))
    relay.expected_errors.add("worker died")
    with crowd(relay.address(), 20, ["127.0.0.1"]) as clients:
        assert len(clients.served) == 6
        for pid in relay.worker_pids():
            os.kill(pid, signal.SIGKILL)
        relay.told("worker died", 2)
    relay.wait_status(lambda status: all(worker["ready"] for worker in status["workers"]))
    with crowd(relay.address(), 20, ["127.0.0.1"]) as clients:
        assert len(clients.served) == 6


def test_five_thousand_customers_in_included_files(echo: Echo, start: Start, tmp_path: object) -> None:
    relay = start("include = []\n" + settings(listener(echo.address), workers=4) + customer("here", ["127.0.0.1"]))
    folder = relay.config.parent / "customers.d"
    folder.mkdir()
    for part in range(5):
        numbers = range(1000 * part, 1000 * (part + 1))
        (folder / f"{part}.toml").write_text(
            "".join(customer(f"c{n}", [f"10.{n >> 8}.{n & 255}.{16 * k}/28" for k in range(4)]) for n in numbers)
        )
    text = 'include = ["customers.d/*.toml"]\n' + relay.config.read_text().replace("include = []\n", "")
    with connect(relay.address(), "127.0.0.1") as client:
        reload(relay, text)
        assert exchange(client) == b"ping"
        with connect(relay.address(), "127.0.0.1") as other:
            assert exchange(other) == b"ping"
    (folder / "9.toml").write_text(customer("c7", ["127.0.0.7"]))
    code, answer = relay.post("/reload")
    assert code != 200
    assert 'customers[5001].name (customers.d/9.toml line 2): "c7" is also the name of customers[8].name' in answer
    relay.expected_errors.add("reload failed")
