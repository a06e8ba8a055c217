"""Other settings for a relay that runs: in effect for what comes next, established connections left as they are."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.lifecycle.test_drain import command, refuses
from tests.support.clients import connect, drain, echoes, exchange, refused
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream


def change(relay: Relay, toml: str) -> tuple[int, str]:
    relay.config.write_text(toml)
    return relay.post("/reload")


def named(name: bytes) -> Upstream:
    """An upstream that says its name."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(name)
        drain(sock)

    return Upstream(serve)


def who(address: tuple[str, int]) -> bytes:
    with connect(address) as client:
        return client.recv(10)


def test_new_connections_go_to_the_new_upstream_and_old_ones_stay(start: Start) -> None:
    with named(b"first") as first, named(b"second") as second:
        relay = start(settings(listener(first.address), workers=2))
        with connect(relay.address()) as old:
            assert old.recv(10) == b"first"
            assert change(relay, settings(listener(second.address), workers=2))[0] == 200
            wait_until(lambda: who(relay.address()) == b"second", what="the new upstream")
            assert [one["name"] for one in relay.status()["upstreams"]] == ["{}:{}".format(*second.address)]
            old.sendall(b"still here")
        relay.wait_active(0)


def test_limits_and_access_hold_for_those_who_come_next(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(5)]
        assert all(exchange(client) == b"ping" for client in clients)
        assert change(relay, settings(listener(echo.address, more="max_connections = 5"), workers=2))[0] == 200
        wait_until(lambda: refused(relay.address()), what="the listener's limit counts those who were there before")
        assert (
            change(relay, settings(listener(echo.address), workers=2, tables='[access]\ndeny = ["127.0.0.0/8"]'))[0]
            == 200
        )
        wait_until(
            lambda: relay.metrics().outcomes().get("refused_access", 0) or not refused(relay.address()), what="no"
        )
        assert refused(relay.address())
        assert all(exchange(client) == b"ping" for client in clients)
        assert change(relay, settings(listener(echo.address), workers=2))[0] == 200
        wait_until(lambda: not refuses(relay) and echoes_or_reset(relay), what="let in again")
    outcomes = relay.metrics().outcomes()
    assert outcomes["refused_listener"] >= 1
    assert outcomes["refused_access"] >= 1


def echoes_or_reset(relay: Relay) -> bool:
    try:
        return echoes(relay.address())
    except ConnectionError:
        return False


def test_timeouts_and_the_log_level_change_for_all(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        assert (
            change(relay, settings(listener(echo.address), tables='[timeouts]\nidle = 0.2\n[log]\nlevel = "warning"'))[
                0
            ]
            == 200
        )
        client.settimeout(20)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    relay.wait_outcomes({"idle_timeout": 1})
    assert not relay.events("reloaded"), "below the new level"
    relay.config.write_text(settings(listener(echo.address)))
    assert relay.post("/reload")[0] == 200
    wait_until(lambda: relay.events("reloaded"), what="the log saying so")


BAD = [
    ("[limits]\nmax_conections = 5", "max_conections"),
    ("[timeouts]\nidle = -1", "timeouts.idle"),
    ("workers = [", "relay.toml"),
    ('[admin]\nbind = "127.0.0.1:1"', "admin.bind"),
    ("[limits]\nheld_bytes = 5000000", "limits.held_bytes"),
    ('[log]\nformat = "console"', "log.format"),
]


@pytest.mark.parametrize(("tables", "name"), BAD, ids=[name for _, name in BAD])
def test_a_bad_file_leaves_everything_as_it_was(echo: Echo, start: Start, tables: str, name: str) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    text = settings(listener(echo.address), tables=tables)
    if "[admin]" in tables:
        text = settings(listener(echo.address)).replace('[admin]\nbind = "127.0.0.1:0"', tables)
    relay.config.write_text(text)
    done = command(relay, "reload")
    assert done.returncode == 1
    assert name in done.stderr
    assert done.stderr.startswith("relay: not reloaded: ")
    (line,) = relay.told("reload failed")
    assert any(name in problem for problem in line["problems"])
    assert relay.metrics().by_label("relay_reloads_total", "result") == {"ok": 0, "failed": 1}
    assert echoes(relay.address())
    relay.config.write_text(settings(listener(echo.address)))
    assert command(relay, "reload").stdout == "reloaded\n"


def test_a_file_that_is_gone_and_an_address_that_is_taken(echo: Echo, start: Start, tmp_path: Path) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    with Echo() as other:
        taken = "{}:{}".format(*other.address)
        code, text = change(relay, settings(listener(echo.address), listener(echo.address, name="more", bind=[taken])))
        assert (code, "listeners.more.bind" in text) == (409, True)
    assert [one["name"] for one in relay.status()["listeners"]] == ["main"]
    relay.config.rename(tmp_path / "elsewhere.toml")
    code, text = relay.post("/reload")
    assert (code, "relay.toml" in text) == (409, True)
    assert echoes(relay.address())
    (tmp_path / "elsewhere.toml").rename(relay.config)


def test_sighup_reloads(start: Start) -> None:
    with named(b"first") as first, named(b"second") as second:
        relay = start(settings(listener(first.address), workers=2))
        relay.config.write_text(settings(listener(second.address), workers=2))
        relay.signal(signal.SIGHUP, to="unit")
        wait_until(lambda: relay.events("reloaded"), what="the log saying so")
        wait_until(lambda: who(relay.address()) == b"second", what="the new upstream")


def test_not_while_it_drains(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    relay.post("/drain")
    relay.wait_phase("drained")
    code, text = relay.post("/reload")
    assert (code, text.startswith("draining")) == (409, True)
    assert relay.post("/undrain")[0] == 200
    assert relay.post("/reload")[0] == 200
    assert echoes(relay.address())


def test_no_new_connection_is_refused_while_settings_change_again_and_again(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    over = threading.Event()
    failures: list[Exception] = []
    served = [0]

    def come() -> None:
        while not over.is_set():
            try:
                assert echoes(relay.address())
                served[0] += 1
            except Exception as error:  # noqa: BLE001 - reported below
                failures.append(error)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        for number in range(20):
            more = listener(echo.address, name=f"n{number % 3}")
            assert (
                change(
                    relay, settings(listener(echo.address), more, workers=2, tables=f"[timeouts]\nidle = {number + 60}")
                )[0]
                == 200
            )
    finally:
        over.set()
        thread.join(20)
    assert not failures
    assert served[0] > 0
    assert all(worker["restarts"] == 0 for worker in relay.status()["workers"])


def test_a_worker_that_is_replaced_serves_as_the_latest_settings_say(start: Start) -> None:
    with named(b"first") as first, named(b"second") as second:
        relay = start(settings(listener(first.address)))
        relay.expected_errors.add("worker died")
        assert change(relay, settings(listener(second.address)))[0] == 200
        (victim,) = relay.worker_pids()
        os.kill(victim, signal.SIGKILL)
        relay.wait_status(lambda status: status["workers"][0]["pid"] not in (None, victim), what="a successor")
        assert who(relay.address()) == b"second"


def test_whoever_looks_meanwhile_gets_an_answer(echo: Echo, start: Start) -> None:
    """Also between one set of upstreams and the next."""
    relay = start(settings(listener(echo.address)))
    over = threading.Event()
    failures: list[object] = []
    looks = [0]

    def look() -> None:
        while not over.is_set():
            for path in ("/status", "/metrics", "/readyz"):
                code, text = relay.get(path)
                looks[0] += 1
                if code != 200:
                    failures.append((path, code, text))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            more = listener(f"127.0.0.1:{9 + number}", name="more")
            assert change(relay, settings(listener(echo.address), more))[0] == 200
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert not failures, failures[:3]
    assert looks[0] > 30
